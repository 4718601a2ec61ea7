//! Reads a password from standard input or from the terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::cli::Failure;
use crate::identity::password::Password;

/// Reads the password from standard input, or asks for it twice on the terminal.
pub(super) fn read_password(from_input: bool) -> Result<Password, Failure> {
    let none = || Failure::Other("there is no password on standard input".to_owned());
    if from_input {
        let password = read_line()?;
        return if password.is_empty() {
            Err(none())
        } else {
            Ok(Password::new(password.to_string()))
        };
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "there is no terminal to ask for a password; add `--password-stdin` and send it on standard input".to_owned(),
        ));
    }
    let (first, second) = (ask("Password: ")?, ask("Again: ")?);
    if *first != *second {
        return Err(Failure::Other("the two passwords differ; nothing was changed".to_owned()));
    }
    Ok(Password::new(first.to_string()))
}

fn read_line() -> Result<Zeroizing<String>, Failure> {
    let mut line = Zeroizing::new(String::new());
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::Other(format!("the password cannot be read: {error}")))?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

/// Asks on the terminal, which does not show what is typed.
fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let stdin = io::stdin();
    let shown = tcgetattr(&stdin).map_err(io::Error::from)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(io::Error::from)?;
    let typed = read_line();
    tcsetattr(&stdin, OptionalActions::Flush, &shown).map_err(io::Error::from)?;
    eprintln!();
    typed
}
