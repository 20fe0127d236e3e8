//! Bases: what their files say, twice or beside what is needed.
