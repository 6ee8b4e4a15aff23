//! The inspect document: what a model is, in numbers.
