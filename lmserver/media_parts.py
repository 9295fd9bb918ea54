"""Media, wired: files, copies of other servers', thumbnails and previews of web pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmserver.config import Config
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.web_pages import WebPages
from lmserver.media.files import MediaFiles
from lmserver.media.library import Library
from lmserver.media.local import LocalMedia
from lmserver.media.remote import RemoteMedia
from lmserver.media.thumbnails import Thumbnails
from lmserver.media.url_previews import UrlPreviews
from lmserver.media.workers import Workers
from lmserver.storage.database import Database


@dataclass(frozen=True, slots=True)
class MediaParts:
    """Uploads, copies, both together, and what is made of them."""

    local: LocalMedia
    remote: RemoteMedia
    library: Library
    thumbnails: Thumbnails
    previews: UrlPreviews | None


DAY_MS = 24 * 3600 * 1000


def media_parts(
    config: Config, db: Database, client: FederationClient, dns: Dns, clock: Callable[[], int]
) -> MediaParts:
    limits = config.media
    folder = config.data_dir / "media"
    local_files, remote_files = MediaFiles(folder / "local"), MediaFiles(folder / "remote")
    local = LocalMedia(db, local_files, limits.user_quota, clock)
    days = limits.remote_retention_days
    remote = RemoteMedia(
        db,
        client,
        remote_files,
        limits.max_remote_size,
        limits.remote_cache_size,
        clock,
        None if days is None else days * DAY_MS,
    )
    workers = Workers()
    thumbnails = Thumbnails(workers)
    library = Library(config.server_name, local, local_files, remote, remote_files, thumbnails)
    previews = _url_previews(config, db, dns, workers, local, local_files, clock)
    return MediaParts(local, remote, library, thumbnails, previews)


def _url_previews(
    config: Config,
    db: Database,
    dns: Dns,
    workers: Workers,
    local: LocalMedia,
    files: MediaFiles,
    clock: Callable[[], int],
) -> UrlPreviews | None:
    wanted = config.url_previews
    if not wanted.enabled:
        return None
    return UrlPreviews(
        db,
        config.server_name,
        WebPages(dns, AddressGuard(wanted.allowed_networks, wanted.denied_networks)),
        workers,
        local,
        files,
        clock,
        max_image=wanted.max_image_size,
        timeout=wanted.timeout,
        cache_size=wanted.cache_size,
    )
