//! Reading a new password: asked for twice at a terminal, a line of standard input otherwise.

use std::io::{IsTerminal, Read};

use anyhow::{Context, bail};
use zeroize::Zeroizing;

/// Most of standard input that is read. Longer passwords are refused anyway.
const INPUT_BYTES_MAX: u64 = 4096;

/// The password that somebody wants to set.
pub async fn new_password() -> anyhow::Result<Zeroizing<String>> {
    // Both wait for a person or another program.
    tokio::task::spawn_blocking(|| if std::io::stdin().is_terminal() { prompt() } else { first_line(std::io::stdin()) })
        .await?
}

fn prompt() -> anyhow::Result<Zeroizing<String>> {
    let ask = |prompt| rpassword::prompt_password(prompt).map(Zeroizing::new).context("cannot read from the terminal");
    let password = ask("New password: ")?;
    if *password != *ask("The same again: ")? {
        bail!("the two are not the same; nothing was changed");
    }
    Ok(password)
}

fn first_line(input: impl Read) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    input.take(INPUT_BYTES_MAX).read_to_string(&mut text).context("cannot read a password from standard input")?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        bail!("standard input holds no password");
    }
    Ok(Zeroizing::new(line.to_owned()))
}
