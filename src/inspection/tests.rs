//! Parameter accounting with hand-computed values.
