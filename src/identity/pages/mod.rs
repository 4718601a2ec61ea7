//! The pages that people log in at. They work without scripts: every form is a POST to the endpoint that programs use too.

pub mod colour;
