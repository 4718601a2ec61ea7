//! Documents about the command line itself: the manual page and the shell completions.

use clap::{Command, CommandFactory, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{CommandLine, Failure};

/// A completion script.
pub(super) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = without_file_names(CommandLine::command());
    clap_complete::generate(shell, &mut command, "portcullis", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Only suggests file names where a file is expected. Shells suggest them for every value of
/// unknown kind.
fn without_file_names(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let has_no_hint = argument.get_value_hint() == ValueHint::Unknown;
        if has_no_hint && argument.get_action().takes_values() {
            argument.value_hint(ValueHint::Other)
        } else {
            argument
        }
    });
    let names: Vec<String> =
        command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    names.iter().fold(command, |command, name| command.mut_subcommand(name, without_file_names))
}

/// One manual page for all commands: a reference to a separate page for each would lead nowhere.
pub(super) fn manual() -> Result<String, Failure> {
    let mut command = CommandLine::command().disable_help_subcommand(true);
    command.build();
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    text.extend_from_slice(b".SH COMMANDS\n");
    for inner in command.get_subcommands() {
        describe(inner, &mut text)?;
    }
    page.render_extra_section(&mut text)?;
    page.render_version_section(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A command with its synopsis and options below a second-level heading, followed by its
/// subcommands.
fn describe(command: &Command, text: &mut Vec<u8>) -> Result<(), Failure> {
    if command.has_subcommands() {
        return command.get_subcommands().try_for_each(|inner| describe(inner, text));
    }
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    text.extend_from_slice(format!(".SS \"{name}\"\n").as_bytes());
    let page = Man::new(command.clone());
    let mut parts = Vec::new();
    page.render_synopsis_section(&mut parts)?;
    page.render_description_section(&mut parts)?;
    page.render_options_section(&mut parts)?;
    if command.get_after_help().is_some() {
        page.render_extra_section(&mut parts)?;
    }
    for line in String::from_utf8_lossy(&parts).lines() {
        // The sections of a separate page are paragraphs here. Each part begins with what only a
        // page needs.
        let line = match line.split_once(' ') {
            Some((".SH", _)) => ".PP",
            _ if line.starts_with(".ie ") || line.starts_with(".el ") => continue,
            _ => line,
        };
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    Ok(())
}
