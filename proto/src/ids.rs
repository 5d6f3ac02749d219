//! Identifiers.

use std::fmt;

/// Why bytes or text are not the identifier they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A fixed-size field has another length.
    #[error("{field} must be {expected} bytes, but has {found}")]
    Length {
        /// The field's name in the message.
        field: &'static str,
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A service's name is empty, too long, or has a character other than `a-z 0-9 -`.
    #[error("service name {0:?} must be 1 to 32 of a-z, 0-9 and -, starting with a letter")]
    ServiceName(String),
    /// A region's name has another form.
    #[error("region {0:?} must be 1 to 32 of a-z, 0-9 and -, starting with a letter")]
    Region(String),
    /// Not a peer id.
    #[error("{0} is not a peer id")]
    PeerId(&'static str),
}

/// Checks the length of a fixed-size field.
pub(crate) fn fixed<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], IdError> {
    bytes.try_into().map_err(|_| IdError::Length { field, expected: N, found: bytes.len() })
}

/// A lease (or a reservation): 32 random bytes that its payee drew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub [u8; 32]);

impl LeaseId {
    /// Parses the field of a message.
    ///
    /// # Errors
    /// When it is not 32 bytes long.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdError> {
        fixed("lease", bytes).map(Self)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for LeaseId {
    /// The first 8 bytes in hex: enough for a person to tell leases apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
}

/// One pair of nodes across one relay, as numbered on one hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The name of a service: 1 to 32 of `a-z`, `0-9` and `-`, starting with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// Parses a name.
    ///
    /// # Errors
    /// When it does not have the form above.
    pub fn parse(name: &str) -> Result<Self, IdError> {
        let valid = (1..=32).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            Err(IdError::ServiceName(name.chars().take(64).collect()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
