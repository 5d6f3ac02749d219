//! Both edges through their public face.

#![expect(clippy::disallowed_methods, reason = "a test's clock begins somewhere")]

mod backup;
mod codec;
mod honest;
mod liars;
mod relay_edge;
mod sight;
mod support;
mod tenant_edge;
mod world;
