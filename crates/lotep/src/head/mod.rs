//! What turns features into class scores.

pub mod linear;
