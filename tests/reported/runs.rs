//! Runs: what they show, signals, stopping and going on.
