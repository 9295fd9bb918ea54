FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY lmserver lmserver
COPY migrations migrations
RUN python -m venv /opt/lmserver && /opt/lmserver/bin/pip install --no-cache-dir .

FROM python:3.11-slim
RUN useradd --system --uid 991 --home-dir /data --shell /usr/sbin/nologin lmserver \
    && install -d -o lmserver -g lmserver -m 0700 /data
COPY --from=build /opt/lmserver /opt/lmserver
ENV PATH="/opt/lmserver/bin:$PATH" PYTHONUNBUFFERED=1
USER lmserver
WORKDIR /data
VOLUME /data
EXPOSE 8008 8448
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8008/_matrix/client/versions', timeout=4)"]
# Mount a configuration at /data/lmserver.yaml: lmserver generate-config --help. In it, client.host
# has to be 0.0.0.0 for clients outside the container.
CMD ["lmserver", "run", "--config", "/data/lmserver.yaml"]
