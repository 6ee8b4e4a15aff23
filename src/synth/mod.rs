//! Header-faithful GGUF files of known models: holes, random weights, tiny siblings.
