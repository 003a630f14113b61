//! Faults of the forge.
