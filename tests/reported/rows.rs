//! Rows and files of data.
