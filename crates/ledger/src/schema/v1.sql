-- Amounts are 16 big-endian bytes, so that they compare as numbers. Counts are bytes of traffic.

CREATE TABLE lease (
    n INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    edge INTEGER NOT NULL,
    role INTEGER NOT NULL,
    peer BLOB NOT NULL,
    terms BLOB NOT NULL,
    terms_signature BLOB NOT NULL,
    expires_unix_s INTEGER NOT NULL,
    channel BLOB CHECK (channel IS NULL OR length(channel) = 32),
    base BLOB NOT NULL CHECK (length(base) = 16),
    sessions INTEGER NOT NULL,
    closed INTEGER NOT NULL
) STRICT;
CREATE INDEX lease_peer ON lease (peer, edge, role);

CREATE TABLE newest (
    lease INTEGER NOT NULL REFERENCES lease (n),
    role INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    up INTEGER NOT NULL,
    down INTEGER NOT NULL,
    amount BLOB NOT NULL CHECK (length(amount) = 16),
    session INTEGER NOT NULL,
    voucher BLOB NOT NULL,
    channel BLOB NOT NULL,
    links INTEGER NOT NULL,
    PRIMARY KEY (lease, role)
) STRICT, WITHOUT ROWID;
CREATE INDEX newest_channel ON newest (channel, role);

CREATE TABLE link (
    lease INTEGER NOT NULL REFERENCES lease (n),
    role INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    up INTEGER NOT NULL,
    down INTEGER NOT NULL,
    amount BLOB NOT NULL CHECK (length(amount) = 16),
    PRIMARY KEY (lease, role, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE channel (
    n INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    chain_id INTEGER NOT NULL,
    contract BLOB NOT NULL,
    payer BLOB NOT NULL,
    signer BLOB NOT NULL,
    payee BLOB NOT NULL,
    payout BLOB NOT NULL,
    token BLOB NOT NULL,
    salt BLOB NOT NULL,
    deposit BLOB NOT NULL CHECK (length(deposit) = 16),
    role INTEGER NOT NULL,
    peer BLOB NOT NULL,
    status INTEGER NOT NULL,
    period_s INTEGER NOT NULL
) STRICT;
CREATE INDEX channel_peer ON channel (peer, role);

CREATE TABLE redemption (
    n INTEGER PRIMARY KEY,
    channel BLOB NOT NULL CHECK (length(channel) = 32),
    kind INTEGER NOT NULL,
    amount BLOB NOT NULL CHECK (length(amount) = 16),
    tx BLOB NOT NULL CHECK (length(tx) = 32),
    gas INTEGER NOT NULL,
    at_unix_s INTEGER NOT NULL,
    UNIQUE (channel, tx, kind)
) STRICT;

CREATE TABLE starter (
    peer BLOB NOT NULL,
    prefix TEXT NOT NULL,
    month INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (peer, prefix, month)
) STRICT, WITHOUT ROWID;
CREATE INDEX starter_prefix ON starter (prefix);
CREATE INDEX starter_month ON starter (month);

CREATE TABLE knock (
    peer BLOB PRIMARY KEY,
    timestamp_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX knock_timestamp ON knock (timestamp_ns);

-- One row each: the newest timestamp of a knock that was forgotten, and the count of probe writes.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counter VALUES ('knock_floor', 0), ('probe', 0);
