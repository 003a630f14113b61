//! API keys: issued once, kept as a hash.
