//! The scripted matrix.
