//! Exit codes, fixed for scripts.

use std::process::ExitCode;

use crate::settings;

/// A negative answer, or invalid input.
pub const NEGATIVE: u8 = 1;
/// Bad usage of the command line, or settings that cannot be, wherever they are from.
pub const USAGE: u8 = 2;
/// Permission is missing.
pub const DENIED: u8 = 4;

/// The command line asks for something that cannot be, in a way that clap does not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Something needs a permission that this process does not have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Denied(pub String);

/// The code that says what kind of error it was.
pub fn of(error: &anyhow::Error) -> ExitCode {
    let code = if error.is::<Usage>() || error.is::<settings::Problem>() {
        USAGE
    } else if error.is::<Denied>() {
        DENIED
    } else {
        NEGATIVE
    };
    ExitCode::from(code)
}
