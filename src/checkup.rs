//! The check document: what a command line would do.
