//! The mesh: how nodes find one another, with nobody in the middle.
