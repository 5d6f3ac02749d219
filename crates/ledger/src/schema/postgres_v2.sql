-- Who uses a channel is asked whenever a lease begins.
CREATE INDEX lease_channel ON lease (channel, role);
