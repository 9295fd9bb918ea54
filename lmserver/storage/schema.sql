-- Made by `python -m tests.kit.schema`; the migrations are what counts.

CREATE TABLE access_tokens (
    token_hash bytea NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    created_ts bigint NOT NULL,
    expires_ts bigint,
    refresh_hash bytea
);
CREATE INDEX access_tokens_device ON access_tokens USING btree (user_id, device_id);
CREATE UNIQUE INDEX access_tokens_pkey ON access_tokens USING btree (token_hash);
CREATE INDEX access_tokens_refresh ON access_tokens USING btree (refresh_hash) WHERE (refresh_hash IS NOT NULL);

CREATE TABLE account_data (
    user_id text NOT NULL,
    room_id text NOT NULL,
    type text NOT NULL,
    content bytea NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX account_data_changes ON account_data USING btree (stream_xid);
CREATE UNIQUE INDEX account_data_pkey ON account_data USING btree (user_id, room_id, type);

CREATE TABLE accounts (
    user_id text NOT NULL,
    password_hash text NOT NULL,
    is_admin boolean NOT NULL DEFAULT false,
    deactivated boolean NOT NULL DEFAULT false,
    displayname text,
    avatar_url text,
    created_ts bigint NOT NULL,
    locked boolean NOT NULL DEFAULT false,
    suspended boolean NOT NULL DEFAULT false,
    erased boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX accounts_pkey ON accounts USING btree (user_id);

CREATE TABLE appservice_interests (
    service text NOT NULL,
    namespaces text NOT NULL,
    since_ts bigint NOT NULL
);
CREATE UNIQUE INDEX appservice_interests_pkey ON appservice_interests USING btree (service);

CREATE TABLE appservice_invites (
    service text NOT NULL,
    user_id text NOT NULL,
    room_id text NOT NULL,
    told_xid bigint NOT NULL
);
CREATE UNIQUE INDEX appservice_invites_pkey ON appservice_invites USING btree (service, user_id, room_id);

CREATE TABLE appservice_rooms (
    service text NOT NULL,
    room_id text NOT NULL,
    position bigint NOT NULL,
    present boolean NOT NULL
);
CREATE UNIQUE INDEX appservice_rooms_pkey ON appservice_rooms USING btree (service, room_id);

CREATE TABLE appservice_transactions (
    service text NOT NULL,
    txn_id bigint NOT NULL,
    body bytea,
    devices_position bigint
);
CREATE UNIQUE INDEX appservice_transactions_pkey ON appservice_transactions USING btree (service);

CREATE TABLE appservice_users (
    user_id text NOT NULL,
    service text NOT NULL
);
CREATE UNIQUE INDEX appservice_users_pkey ON appservice_users USING btree (user_id, service);

CREATE TABLE backed_up_keys (
    user_id text NOT NULL,
    version bigint NOT NULL,
    room_id text NOT NULL,
    session_id text NOT NULL,
    first_message_index bigint NOT NULL,
    forwarded_count bigint NOT NULL,
    is_verified boolean NOT NULL,
    session_data bytea NOT NULL
);
CREATE UNIQUE INDEX backed_up_keys_pkey ON backed_up_keys USING btree (user_id, version, room_id, session_id);

CREATE TABLE blocked_rooms (
    room_id text NOT NULL,
    blocked_by text NOT NULL,
    created_ts bigint NOT NULL
);
CREATE UNIQUE INDEX blocked_rooms_pkey ON blocked_rooms USING btree (room_id);

CREATE TABLE blocked_servers (
    server text NOT NULL,
    blocked_by text NOT NULL,
    reason text NOT NULL,
    created_ts bigint NOT NULL
);
CREATE UNIQUE INDEX blocked_servers_pkey ON blocked_servers USING btree (server);

CREATE TABLE claimed_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    key_id text NOT NULL,
    key_hash bytea NOT NULL,
    claimed_at timestamp with time zone NOT NULL DEFAULT now()
);
CREATE INDEX claimed_keys_age ON claimed_keys USING btree (claimed_at);
CREATE UNIQUE INDEX claimed_keys_pkey ON claimed_keys USING btree (user_id, device_id, key_id);

CREATE TABLE client_transactions (
    scope bytea NOT NULL,
    txn_id text NOT NULL,
    event_id text,
    lpdu_id text,
    created_ts bigint NOT NULL
);
CREATE INDEX client_transactions_age ON client_transactions USING btree (created_ts);
CREATE INDEX client_transactions_lpdu ON client_transactions USING btree (lpdu_id) WHERE (lpdu_id IS NOT NULL);
CREATE UNIQUE INDEX client_transactions_pkey ON client_transactions USING btree (scope, txn_id);

CREATE TABLE cross_signing_keys (
    user_id text NOT NULL,
    usage text NOT NULL,
    key bytea NOT NULL
);
CREATE UNIQUE INDEX cross_signing_keys_pkey ON cross_signing_keys USING btree (user_id, usage);

CREATE TABLE dehydrated_devices (
    user_id text NOT NULL,
    device_id text NOT NULL,
    device_data bytea NOT NULL
);
CREATE UNIQUE INDEX dehydrated_devices_pkey ON dehydrated_devices USING btree (user_id);

CREATE TABLE departures (
    user_id text NOT NULL,
    retry_at bigint NOT NULL,
    tries integer NOT NULL DEFAULT 0
);
CREATE INDEX departures_due ON departures USING btree (retry_at);
CREATE UNIQUE INDEX departures_pkey ON departures USING btree (user_id);

CREATE TABLE destinations (
    destination text NOT NULL,
    failures integer NOT NULL DEFAULT 0,
    retry_at bigint NOT NULL DEFAULT 0,
    lease_owner text,
    lease_fence bigint NOT NULL DEFAULT 0,
    lease_until bigint NOT NULL DEFAULT 0,
    failing_since bigint NOT NULL DEFAULT 0,
    last_failure text
);
CREATE INDEX destinations_failing ON destinations USING btree (retry_at) WHERE (retry_at > 0);
CREATE UNIQUE INDEX destinations_pkey ON destinations USING btree (destination);

CREATE TABLE device_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    keys bytea NOT NULL
);
CREATE UNIQUE INDEX device_keys_pkey ON device_keys USING btree (user_id, device_id);

CREATE TABLE device_list_changes (
    user_id text NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    stream_id bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX device_list_changes_pkey ON device_list_changes USING btree (user_id);
CREATE INDEX device_list_changes_stream ON device_list_changes USING btree (stream_xid);

CREATE TABLE devices (
    user_id text NOT NULL,
    device_id text NOT NULL,
    display_name text,
    last_seen_ip text,
    last_seen_ts bigint
);
CREATE UNIQUE INDEX devices_pkey ON devices USING btree (user_id, device_id);

CREATE TABLE directory_users (
    user_id text NOT NULL,
    display_name text,
    avatar_url text,
    words tsvector NOT NULL
);
CREATE UNIQUE INDEX directory_users_pkey ON directory_users USING btree (user_id);
CREATE INDEX directory_users_words ON directory_users USING gin (words);

CREATE TABLE erasures (
    room_id text NOT NULL,
    user_id text NOT NULL,
    position bigint NOT NULL
);
CREATE UNIQUE INDEX erasures_pkey ON erasures USING btree (room_id, user_id);

CREATE TABLE event_relations (
    room_id text NOT NULL,
    event_id text NOT NULL,
    position bigint NOT NULL,
    parent_id text NOT NULL,
    rel_type text NOT NULL,
    type text NOT NULL,
    sender text NOT NULL,
    ts bigint NOT NULL,
    key text
);
CREATE INDEX event_relations_parent ON event_relations USING btree (room_id, parent_id, "position");
CREATE UNIQUE INDEX event_relations_pkey ON event_relations USING btree (room_id, event_id);
CREATE INDEX event_relations_sender ON event_relations USING btree (room_id, parent_id, rel_type, sender, ts);
CREATE INDEX event_relations_type ON event_relations USING btree (room_id, parent_id, rel_type, "position");

CREATE TABLE events (
    room_id text NOT NULL,
    event_id text NOT NULL,
    position bigint,
    prev_event_id text,
    lpdu_hash text,
    type text NOT NULL,
    state_key text,
    sender text NOT NULL,
    pdu bytea NOT NULL,
    soft_failed text,
    redacted_by text,
    received_ts bigint NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    backfilled boolean NOT NULL DEFAULT false,
    words tsvector
);
CREATE UNIQUE INDEX events_lpdu ON events USING btree (room_id, lpdu_hash, sender);
CREATE UNIQUE INDEX events_pkey ON events USING btree (event_id, room_id);
CREATE UNIQUE INDEX events_position ON events USING btree (room_id, "position");
CREATE UNIQUE INDEX events_prev ON events USING btree (room_id, prev_event_id) WHERE (prev_event_id IS NOT NULL);
CREATE INDEX events_stream ON events USING btree (stream_xid);
CREATE INDEX events_words ON events USING gin (words) WHERE (words IS NOT NULL);

CREATE TABLE evidence (
    room_id text NOT NULL,
    event_id text NOT NULL,
    kind text NOT NULL,
    detail text NOT NULL,
    pdu bytea NOT NULL,
    created_ts bigint NOT NULL,
    related bytea
);
CREATE UNIQUE INDEX evidence_pkey ON evidence USING btree (room_id, event_id, kind);

CREATE TABLE external_ids (
    provider text NOT NULL,
    subject text NOT NULL,
    user_id text NOT NULL
);
CREATE UNIQUE INDEX external_ids_pkey ON external_ids USING btree (provider, subject);
CREATE INDEX external_ids_user ON external_ids USING btree (user_id);

CREATE TABLE fallback_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    algorithm text NOT NULL,
    key_id text NOT NULL,
    key bytea NOT NULL,
    used boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX fallback_keys_pkey ON fallback_keys USING btree (user_id, device_id, algorithm);

CREATE TABLE filters (
    user_id text NOT NULL,
    filter_id text NOT NULL,
    filter bytea NOT NULL
);
CREATE UNIQUE INDEX filters_pkey ON filters USING btree (user_id, filter_id);

CREATE TABLE forgotten_rooms (
    user_id text NOT NULL,
    room_id text NOT NULL
);
CREATE UNIQUE INDEX forgotten_rooms_pkey ON forgotten_rooms USING btree (user_id, room_id);

CREATE TABLE inbound_leases (
    origin text NOT NULL,
    txn_id text NOT NULL,
    fence bigint NOT NULL,
    lease_until bigint NOT NULL
);
CREATE UNIQUE INDEX inbound_leases_pkey ON inbound_leases USING btree (origin);

CREATE TABLE inbound_transactions (
    origin text NOT NULL,
    endpoint text NOT NULL,
    txn_id text NOT NULL,
    status integer NOT NULL,
    response bytea NOT NULL,
    created_ts bigint NOT NULL
);
CREATE INDEX inbound_transactions_age ON inbound_transactions USING btree (created_ts);
CREATE UNIQUE INDEX inbound_transactions_pkey ON inbound_transactions USING btree (origin, endpoint, txn_id);

CREATE TABLE interactive_auth_sessions (
    session_hash bytea NOT NULL,
    owner text NOT NULL,
    fingerprint bytea NOT NULL,
    completed bytea NOT NULL,
    created_ts bigint NOT NULL
);
CREATE INDEX interactive_auth_sessions_age ON interactive_auth_sessions USING btree (created_ts);
CREATE INDEX interactive_auth_sessions_owner ON interactive_auth_sessions USING btree (owner, created_ts);
CREATE UNIQUE INDEX interactive_auth_sessions_pkey ON interactive_auth_sessions USING btree (session_hash);

CREATE TABLE key_backups (
    user_id text NOT NULL,
    version bigint NOT NULL,
    algorithm text NOT NULL,
    auth_data bytea NOT NULL,
    etag bigint NOT NULL DEFAULT 0,
    key_count bigint NOT NULL DEFAULT 0,
    deleted boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX key_backups_pkey ON key_backups USING btree (user_id, version);

CREATE TABLE key_conflicts (
    server text NOT NULL,
    key_id text NOT NULL,
    key bytea NOT NULL,
    told_by text NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    times bigint NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX key_conflicts_pkey ON key_conflicts USING btree (server, key_id, key, told_by);

CREATE TABLE key_servers (
    server text NOT NULL,
    linearized boolean NOT NULL,
    fetched_ts bigint NOT NULL
);
CREATE UNIQUE INDEX key_servers_pkey ON key_servers USING btree (server);

CREATE TABLE key_signatures (
    target_user_id text NOT NULL,
    target_key text NOT NULL,
    signer_user_id text NOT NULL,
    signer_key_id text NOT NULL,
    signature text NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX key_signatures_changes ON key_signatures USING btree (stream_xid);
CREATE INDEX key_signatures_pair ON key_signatures USING btree (target_user_id, signer_user_id);
CREATE UNIQUE INDEX key_signatures_pkey ON key_signatures USING btree (target_user_id, target_key, signer_user_id, signer_key_id);
CREATE INDEX key_signatures_signer ON key_signatures USING btree (signer_user_id, stream_xid);

CREATE TABLE local_media (
    media_id text NOT NULL,
    user_id text NOT NULL,
    created_ts bigint NOT NULL,
    sha256 bytea,
    size bigint,
    content_type text,
    filename text,
    used_ts bigint NOT NULL DEFAULT 0,
    quarantined boolean NOT NULL DEFAULT false,
    protected boolean NOT NULL DEFAULT false
);
CREATE INDEX local_media_pending ON local_media USING btree (created_ts) WHERE (sha256 IS NULL);
CREATE UNIQUE INDEX local_media_pkey ON local_media USING btree (media_id);
CREATE INDEX local_media_sha256 ON local_media USING btree (sha256) WHERE (sha256 IS NOT NULL);
CREATE INDEX local_media_used ON local_media USING btree (used_ts) WHERE (sha256 IS NOT NULL);
CREATE INDEX local_media_user ON local_media USING btree (user_id);

CREATE TABLE login_tokens (
    token_hash bytea NOT NULL,
    user_id text NOT NULL,
    expires_ts bigint NOT NULL
);
CREATE INDEX login_tokens_age ON login_tokens USING btree (expires_ts);
CREATE UNIQUE INDEX login_tokens_pkey ON login_tokens USING btree (token_hash);
CREATE INDEX login_tokens_user ON login_tokens USING btree (user_id);

CREATE TABLE notice_rooms (
    user_id text NOT NULL,
    room_id text NOT NULL
);
CREATE UNIQUE INDEX notice_rooms_pkey ON notice_rooms USING btree (user_id);

CREATE TABLE one_time_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    key_id text NOT NULL,
    algorithm text NOT NULL,
    key bytea NOT NULL,
    seq bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY
);
CREATE INDEX one_time_keys_algorithm ON one_time_keys USING btree (user_id, device_id, algorithm, seq);
CREATE UNIQUE INDEX one_time_keys_pkey ON one_time_keys USING btree (user_id, device_id, key_id);

CREATE TABLE openid_tokens (
    token_hash bytea NOT NULL,
    user_id text NOT NULL,
    expires_ts bigint NOT NULL
);
CREATE INDEX openid_tokens_ended ON openid_tokens USING btree (expires_ts);
CREATE UNIQUE INDEX openid_tokens_pkey ON openid_tokens USING btree (token_hash);

CREATE TABLE outbound_edus (
    destination text NOT NULL,
    seq bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    edu bytea NOT NULL,
    created_ts bigint NOT NULL,
    kind text NOT NULL,
    key text
);
CREATE INDEX outbound_edus_age ON outbound_edus USING btree (created_ts);
CREATE UNIQUE INDEX outbound_edus_key ON outbound_edus USING btree (destination, key) WHERE (key IS NOT NULL);
CREATE INDEX outbound_edus_kind ON outbound_edus USING btree (destination, kind, seq);
CREATE UNIQUE INDEX outbound_edus_pkey ON outbound_edus USING btree (destination, seq);

CREATE TABLE outbound_lpdus (
    room_id text NOT NULL,
    lpdu_id text NOT NULL,
    lpdu_hash text NOT NULL,
    destination text NOT NULL,
    lpdu bytea NOT NULL,
    user_id text NOT NULL,
    device_id text,
    txn_id text,
    status text NOT NULL DEFAULT 'pending'::text,
    pdu_event_id text,
    reason text,
    created_ts bigint NOT NULL,
    seq bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    sends integer NOT NULL DEFAULT 0,
    resend_at bigint NOT NULL DEFAULT 0,
    checks integer NOT NULL DEFAULT 0,
    check_at bigint NOT NULL DEFAULT 0
);
CREATE INDEX outbound_lpdus_destination ON outbound_lpdus USING btree (destination, lpdu_id);
CREATE INDEX outbound_lpdus_hash ON outbound_lpdus USING btree (room_id, lpdu_hash);
CREATE INDEX outbound_lpdus_pending ON outbound_lpdus USING btree (destination, seq) WHERE (status = 'pending'::text);
CREATE UNIQUE INDEX outbound_lpdus_pkey ON outbound_lpdus USING btree (room_id, lpdu_id);
CREATE INDEX outbound_lpdus_watched ON outbound_lpdus USING btree (check_at) WHERE (status = ANY (ARRAY['pending'::text, 'accepted'::text]));

CREATE TABLE outbound_ranges (
    destination text NOT NULL,
    room_id text NOT NULL,
    from_position bigint NOT NULL,
    until_position bigint,
    acked_position bigint NOT NULL
);
CREATE UNIQUE INDEX outbound_ranges_pkey ON outbound_ranges USING btree (destination, room_id, from_position);
CREATE INDEX outbound_ranges_room ON outbound_ranges USING btree (room_id);

CREATE TABLE outbound_transactions (
    destination text NOT NULL,
    txn_id text NOT NULL,
    body bytea,
    contents bytea NOT NULL,
    created_ts bigint NOT NULL
);
CREATE UNIQUE INDEX outbound_transactions_pkey ON outbound_transactions USING btree (destination);

CREATE TABLE outside_memberships (
    user_id text NOT NULL,
    room_id text NOT NULL,
    hub_server text NOT NULL,
    sender text NOT NULL,
    room_version text NOT NULL,
    event bytea,
    stripped_state bytea NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    membership text NOT NULL,
    event_id text,
    tell_at bigint,
    tries integer NOT NULL DEFAULT 0
);
CREATE INDEX outside_memberships_changes ON outside_memberships USING btree (stream_xid);
CREATE UNIQUE INDEX outside_memberships_pkey ON outside_memberships USING btree (user_id, room_id);
CREATE INDEX outside_memberships_room ON outside_memberships USING btree (room_id);
CREATE INDEX outside_memberships_stream ON outside_memberships USING btree (user_id, stream_xid);
CREATE INDEX outside_memberships_untold ON outside_memberships USING btree (tell_at) WHERE (tell_at IS NOT NULL);

CREATE TABLE outside_rooms (
    room_id text NOT NULL
);
CREATE UNIQUE INDEX outside_rooms_pkey ON outside_rooms USING btree (room_id);

CREATE TABLE profile_fields (
    user_id text NOT NULL,
    field text NOT NULL,
    value bytea NOT NULL
);
CREATE UNIQUE INDEX profile_fields_pkey ON profile_fields USING btree (user_id, field);

CREATE TABLE published_rooms (
    room_id text NOT NULL
);
CREATE UNIQUE INDEX published_rooms_pkey ON published_rooms USING btree (room_id);

CREATE TABLE push_queue (
    user_id text NOT NULL,
    app_id text NOT NULL,
    pushkey text NOT NULL,
    seq bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    room_id text NOT NULL,
    event_id text NOT NULL,
    tweaks bytea NOT NULL,
    created_ts bigint NOT NULL
);
CREATE UNIQUE INDEX push_queue_pkey ON push_queue USING btree (user_id, app_id, pushkey, seq);

CREATE TABLE push_rooms (
    room_id text NOT NULL,
    looked_to bigint NOT NULL
);
CREATE UNIQUE INDEX push_rooms_pkey ON push_rooms USING btree (room_id);

CREATE TABLE push_rules (
    user_id text NOT NULL,
    changes bytea NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX push_rules_changes ON push_rules USING btree (stream_xid);
CREATE UNIQUE INDEX push_rules_pkey ON push_rules USING btree (user_id);

CREATE TABLE pushers (
    user_id text NOT NULL,
    app_id text NOT NULL,
    pushkey text NOT NULL,
    device_id text NOT NULL,
    shown bytea NOT NULL,
    url text NOT NULL,
    set_ts bigint NOT NULL,
    failures integer NOT NULL DEFAULT 0,
    retry_at bigint NOT NULL DEFAULT 0
);
CREATE INDEX pushers_key ON pushers USING btree (app_id, pushkey);
CREATE UNIQUE INDEX pushers_pkey ON pushers USING btree (user_id, app_id, pushkey);

CREATE TABLE receipts (
    room_id text NOT NULL,
    user_id text NOT NULL,
    receipt_type text NOT NULL,
    thread_id text NOT NULL,
    event_id text NOT NULL,
    position bigint NOT NULL,
    ts bigint NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX receipts_changes ON receipts USING btree (stream_xid);
CREATE UNIQUE INDEX receipts_pkey ON receipts USING btree (room_id, user_id, receipt_type, thread_id);
CREATE INDEX receipts_reader ON receipts USING btree (user_id, stream_xid);
CREATE INDEX receipts_stream ON receipts USING btree (room_id, stream_xid);

CREATE TABLE redactions (
    room_id text NOT NULL,
    redacts text NOT NULL,
    event_id text NOT NULL,
    by_moderator boolean NOT NULL,
    sender text NOT NULL
);
CREATE UNIQUE INDEX redactions_pkey ON redactions USING btree (room_id, redacts, event_id);

CREATE TABLE refresh_tokens (
    token_hash bytea NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    next_hash bytea,
    created_ts bigint NOT NULL
);
CREATE INDEX refresh_tokens_device ON refresh_tokens USING btree (user_id, device_id);
CREATE INDEX refresh_tokens_next ON refresh_tokens USING btree (next_hash) WHERE (next_hash IS NOT NULL);
CREATE UNIQUE INDEX refresh_tokens_pkey ON refresh_tokens USING btree (token_hash);

CREATE TABLE registration_tokens (
    token text NOT NULL,
    uses_allowed bigint,
    completed bigint NOT NULL DEFAULT 0,
    expires_ts bigint,
    created_ts bigint NOT NULL
);
CREATE UNIQUE INDEX registration_tokens_pkey ON registration_tokens USING btree (token);

CREATE TABLE remote_media (
    server text NOT NULL,
    media_id text NOT NULL,
    sha256 bytea NOT NULL,
    size bigint NOT NULL,
    content_type text NOT NULL,
    filename text,
    used_ts bigint NOT NULL,
    thumbnails_size bigint NOT NULL DEFAULT 0,
    quarantined boolean NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX remote_media_pkey ON remote_media USING btree (server, media_id);
CREATE INDEX remote_media_sha256 ON remote_media USING btree (sha256);
CREATE INDEX remote_media_used ON remote_media USING btree (used_ts);

CREATE TABLE reports (
    id bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    reporter text NOT NULL,
    kind text NOT NULL,
    room_id text,
    event_id text,
    reported text,
    reason text NOT NULL,
    score integer,
    created_ts bigint NOT NULL
);
CREATE UNIQUE INDEX reports_pkey ON reports USING btree (id);

CREATE TABLE restore_guard (
    id smallint NOT NULL DEFAULT 1,
    beat bigint NOT NULL,
    beaten_at timestamp with time zone NOT NULL DEFAULT now(),
    epoch bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX restore_guard_pkey ON restore_guard USING btree (id);

CREATE TABLE room_aliases (
    alias text NOT NULL,
    room_id text NOT NULL,
    creator text NOT NULL,
    created_ts bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX room_aliases_pkey ON room_aliases USING btree (alias);
CREATE INDEX room_aliases_room ON room_aliases USING btree (room_id);

CREATE TABLE room_gaps (
    room_id text NOT NULL,
    target_event_id text NOT NULL,
    boundaries text[] NOT NULL DEFAULT '{}'::text[],
    attempts integer NOT NULL DEFAULT 0,
    retry_at bigint NOT NULL
);
CREATE INDEX room_gaps_due ON room_gaps USING btree (retry_at);
CREATE UNIQUE INDEX room_gaps_pkey ON room_gaps USING btree (room_id);

CREATE TABLE room_purges (
    delete_id text NOT NULL,
    room_id text NOT NULL,
    requested_by text NOT NULL,
    deletes boolean NOT NULL,
    forced boolean NOT NULL,
    status text NOT NULL,
    kicked text[] NOT NULL DEFAULT '{}'::text[],
    aliases text[] NOT NULL DEFAULT '{}'::text[],
    removed bigint NOT NULL DEFAULT 0,
    error text,
    started_ts bigint NOT NULL,
    ended_ts bigint
);
CREATE UNIQUE INDEX room_purges_active ON room_purges USING btree (room_id) WHERE (ended_ts IS NULL);
CREATE UNIQUE INDEX room_purges_pkey ON room_purges USING btree (room_id, delete_id);

CREATE TABLE room_state (
    room_id text NOT NULL,
    type text NOT NULL,
    state_key text NOT NULL,
    event_id text NOT NULL,
    membership text,
    from_position bigint NOT NULL,
    to_position bigint
);
CREATE INDEX room_state_all ON room_state USING btree (room_id, type, state_key);
CREATE INDEX room_state_changes ON room_state USING btree (((room_id || ''::text)), ((from_position >> 8)));
CREATE UNIQUE INDEX room_state_current ON room_state USING btree (room_id, type, state_key) WHERE (to_position IS NULL);
CREATE INDEX room_state_members ON room_state USING btree (state_key, room_id) WHERE ((type = 'm.room.member'::text) AND (to_position IS NULL));

CREATE TABLE rooms (
    room_id text NOT NULL,
    room_version text NOT NULL,
    hub_server text NOT NULL,
    create_event_id text NOT NULL,
    head_position bigint NOT NULL,
    head_event_id text NOT NULL,
    min_position bigint NOT NULL,
    created_ts bigint NOT NULL,
    hold text,
    is_public boolean NOT NULL DEFAULT false,
    empty_since bigint
);
CREATE INDEX rooms_empty ON rooms USING btree (empty_since) WHERE (empty_since IS NOT NULL);
CREATE INDEX rooms_hold ON rooms USING btree (room_id) WHERE (hold IS NOT NULL);
CREATE UNIQUE INDEX rooms_pkey ON rooms USING btree (room_id);

CREATE TABLE server_key_documents (
    server text NOT NULL,
    key_set text NOT NULL,
    document bytea NOT NULL,
    valid_until_ts bigint NOT NULL,
    fetched_ts bigint NOT NULL
);
CREATE UNIQUE INDEX server_key_documents_pkey ON server_key_documents USING btree (server, key_set);

CREATE TABLE server_keys (
    server text NOT NULL,
    key_id text NOT NULL,
    key bytea NOT NULL,
    valid_until_ts bigint NOT NULL,
    expired_ts bigint,
    first_seen bigint NOT NULL,
    direct boolean NOT NULL DEFAULT true,
    told_until bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX server_keys_pkey ON server_keys USING btree (server, key_id);

CREATE TABLE sliding_connections (
    user_id text NOT NULL,
    connection bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    device_id text NOT NULL,
    conn_id text NOT NULL,
    patterns bytea NOT NULL,
    used_ts bigint NOT NULL
);
CREATE INDEX sliding_connections_age ON sliding_connections USING btree (used_ts);
CREATE UNIQUE INDEX sliding_connections_pkey ON sliding_connections USING btree (user_id, connection);
CREATE UNIQUE INDEX sliding_connections_user_id_device_id_conn_id_key ON sliding_connections USING btree (user_id, device_id, conn_id);

CREATE TABLE sliding_positions (
    user_id text NOT NULL,
    connection bigint NOT NULL,
    position bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    request bytea NOT NULL,
    extensions text[] NOT NULL
);
CREATE UNIQUE INDEX sliding_positions_pkey ON sliding_positions USING btree (user_id, connection, "position");

CREATE TABLE sliding_rooms (
    user_id text NOT NULL,
    connection bigint NOT NULL,
    room_id text NOT NULL,
    position bigint NOT NULL,
    sent bytea NOT NULL
);
CREATE UNIQUE INDEX sliding_rooms_pkey ON sliding_rooms USING btree (user_id, connection, room_id, "position");

CREATE TABLE sso_sessions (
    state_hash bytea NOT NULL,
    browser_hash bytea NOT NULL,
    provider text NOT NULL,
    nonce text NOT NULL,
    verifier text NOT NULL,
    redirect_url text,
    confirms bytea,
    counted_as text NOT NULL,
    created_ts bigint NOT NULL
);
CREATE INDEX sso_sessions_age ON sso_sessions USING btree (created_ts);
CREATE INDEX sso_sessions_counted ON sso_sessions USING btree (counted_as, created_ts);
CREATE UNIQUE INDEX sso_sessions_pkey ON sso_sessions USING btree (state_hash);

CREATE TABLE threads (
    room_id text NOT NULL,
    root_id text NOT NULL,
    replies bigint NOT NULL,
    last_position bigint NOT NULL
);
CREATE INDEX threads_newest ON threads USING btree (room_id, last_position);
CREATE UNIQUE INDEX threads_pkey ON threads USING btree (room_id, root_id);

CREATE TABLE to_device_messages (
    user_id text NOT NULL,
    device_id text NOT NULL,
    seq bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    message bytea NOT NULL,
    stream_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX to_device_messages_changes ON to_device_messages USING btree (stream_xid);
CREATE UNIQUE INDEX to_device_messages_pkey ON to_device_messages USING btree (user_id, device_id, seq);
CREATE INDEX to_device_messages_stream ON to_device_messages USING btree (user_id, device_id, stream_xid);

CREATE TABLE to_device_received (
    origin text NOT NULL,
    message_key bytea NOT NULL,
    seq bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    received_ts bigint NOT NULL
);
CREATE INDEX to_device_received_age ON to_device_received USING btree (received_ts);
CREATE INDEX to_device_received_order ON to_device_received USING btree (origin, seq);
CREATE UNIQUE INDEX to_device_received_pkey ON to_device_received USING btree (origin, message_key);

CREATE TABLE to_device_transactions (
    user_id text NOT NULL,
    device_id text NOT NULL,
    txn_id text NOT NULL,
    created_ts bigint NOT NULL
);
CREATE INDEX to_device_transactions_age ON to_device_transactions USING btree (created_ts);
CREATE UNIQUE INDEX to_device_transactions_pkey ON to_device_transactions USING btree (user_id, device_id, txn_id);

CREATE TABLE unread_tallies (
    user_id text NOT NULL,
    room_id text NOT NULL,
    counted_to bigint NOT NULL,
    marks bytea NOT NULL
);
CREATE UNIQUE INDEX unread_tallies_pkey ON unread_tallies USING btree (user_id, room_id);

CREATE TABLE url_previews (
    key bytea NOT NULL,
    content text,
    media_id text,
    image_size bigint NOT NULL,
    expires_ts bigint NOT NULL
);
CREATE INDEX url_previews_expires ON url_previews USING btree (expires_ts);
CREATE INDEX url_previews_media ON url_previews USING btree (media_id);
CREATE UNIQUE INDEX url_previews_pkey ON url_previews USING btree (key);
