-- As SQLite's, in a schema of its own: amounts are 16 big-endian bytes, counts are bytes of traffic.

CREATE TABLE lease (
    n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id BYTEA NOT NULL UNIQUE CHECK (length(id) = 32),
    edge BIGINT NOT NULL,
    role BIGINT NOT NULL,
    peer BYTEA NOT NULL,
    terms BYTEA NOT NULL,
    terms_signature BYTEA NOT NULL,
    expires_unix_s BIGINT NOT NULL,
    channel BYTEA CHECK (channel IS NULL OR length(channel) = 32),
    base BYTEA NOT NULL CHECK (length(base) = 16),
    sessions BIGINT NOT NULL,
    closed BIGINT NOT NULL,
    -- Whose lease it is, of a fleet.
    member TEXT NOT NULL DEFAULT current_setting('sluice.member')
);
CREATE INDEX lease_peer ON lease (peer, edge, role);

CREATE TABLE newest (
    lease BIGINT NOT NULL REFERENCES lease (n),
    role BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    up BIGINT NOT NULL,
    down BIGINT NOT NULL,
    amount BYTEA NOT NULL CHECK (length(amount) = 16),
    session BIGINT NOT NULL,
    voucher BYTEA NOT NULL,
    channel BYTEA NOT NULL,
    links BIGINT NOT NULL,
    PRIMARY KEY (lease, role)
);
CREATE INDEX newest_channel ON newest (channel, role);

CREATE TABLE link (
    lease BIGINT NOT NULL REFERENCES lease (n),
    role BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    up BIGINT NOT NULL,
    down BIGINT NOT NULL,
    amount BYTEA NOT NULL CHECK (length(amount) = 16),
    PRIMARY KEY (lease, role, seq)
);

CREATE TABLE channel (
    n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id BYTEA NOT NULL UNIQUE CHECK (length(id) = 32),
    chain_id BIGINT NOT NULL,
    contract BYTEA NOT NULL,
    payer BYTEA NOT NULL,
    signer BYTEA NOT NULL,
    payee BYTEA NOT NULL,
    payout BYTEA NOT NULL,
    token BYTEA NOT NULL,
    salt BYTEA NOT NULL,
    deposit BYTEA NOT NULL CHECK (length(deposit) = 16),
    role BIGINT NOT NULL,
    peer BYTEA NOT NULL,
    status BIGINT NOT NULL,
    period_s BIGINT NOT NULL
);
CREATE INDEX channel_peer ON channel (peer, role);

CREATE TABLE redemption (
    n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel BYTEA NOT NULL CHECK (length(channel) = 32),
    kind BIGINT NOT NULL,
    amount BYTEA NOT NULL CHECK (length(amount) = 16),
    tx BYTEA NOT NULL CHECK (length(tx) = 32),
    gas BIGINT NOT NULL,
    at_unix_s BIGINT NOT NULL,
    UNIQUE (channel, tx, kind)
);

CREATE TABLE starter (
    peer BYTEA NOT NULL,
    prefix TEXT NOT NULL,
    month BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (peer, prefix, month)
);
CREATE INDEX starter_prefix ON starter (prefix);
CREATE INDEX starter_month ON starter (month);

CREATE TABLE knock (
    peer BYTEA PRIMARY KEY,
    timestamp_ns BIGINT NOT NULL
);
CREATE INDEX knock_timestamp ON knock (timestamp_ns);

-- One row each: the newest timestamp of a knock that was forgotten, and the count of probe writes.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counter VALUES ('knock_floor', 0), ('probe', 0);

-- Each process of the fleet: how often one of its name was started, and until when nobody else may take
-- what it has. It renews that beside its transactions, so that a long one delays nothing.
CREATE TABLE member (
    name TEXT PRIMARY KEY,
    incarnation BIGINT NOT NULL,
    held_until TIMESTAMPTZ NOT NULL,
    place TEXT NOT NULL
);

-- The newest transaction of each.
CREATE TABLE turn (
    member TEXT PRIMARY KEY,
    incarnation BIGINT NOT NULL,
    batch BIGINT NOT NULL
);

-- One row: when the server was started, and when a member first came back to it after that.
CREATE TABLE uptime (
    started TIMESTAMPTZ NOT NULL,
    back TIMESTAMPTZ NOT NULL
);
INSERT INTO uptime VALUES (pg_postmaster_start_time(), clock_timestamp());

-- Who has what, and the number of the taking. Kinds: 0 a channel, 1 a lease without one, 2 the
-- redemption of a channel, 3 an account.
CREATE TABLE fence (
    kind BIGINT NOT NULL,
    id BYTEA NOT NULL,
    epoch BIGINT NOT NULL,
    member TEXT,
    incarnation BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);
