//! The built-in issuer: accounts, sessions, the keys that its tokens are signed with, and the endpoints that people log in at.

pub mod account;
pub mod brand;
pub mod email;
pub mod hasher;
pub mod mail;
mod mount;
pub mod pages;
pub mod password;
pub mod policy;
pub mod strength;

pub use self::brand::Brand;
pub use self::email::{Email, NoEmail};
pub use self::mail::MailSettings;
pub use self::mount::Mount;
pub use self::policy::{Policy, Registration};
