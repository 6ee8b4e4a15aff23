//! A measurement and its comparison with a prediction.
