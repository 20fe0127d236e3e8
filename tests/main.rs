//! What users depend on, theme by theme.

mod cli;
mod recipes;
