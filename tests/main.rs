//! What users depend on, theme by theme.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod cli;
mod recipes;
