//! Choosing a placement for a budget, and the command that gives it.
