//! `podbay migrate FILE`: a `kuberun` configuration becomes one of `kubernetes`.

use crate::check;
use anyhow::{Context as _, bail};
use podbay_backend_core::migrate::migrate;
use podbay_runtime::config::Document;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// There is something to migrate (`--check`).
const OUTDATED: u8 = 1;
/// Mistakes in the file.
const WRONG: u8 = 2;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A configuration file (YAML or JSON) with a section kuberun, as ContainerSSH 0.3 and 0.4 have it.
    file: PathBuf,
    /// Write the new file in place of the old, which is kept beside it as FILE.bak. Without: on stdout.
    #[arg(long, conflicts_with = "check")]
    in_place: bool,
    /// Only say whether there is something to migrate: exit 1 where there is, 0 where not, 2 where the file has mistakes.
    #[arg(long)]
    check: bool,
}

/// Migrates; what changed and why goes to stderr.
pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let file = &arguments.file;
    let name = file.display().to_string();
    // Exit 1 is --check's answer: what can't be read is wrong, like what can't be understood.
    let (old, migration) = match Document::text_of(file).and_then(|old| Ok((migrate(&name, &old)?, old))) {
        Ok((migration, old)) => (old, migration),
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return Ok(ExitCode::from(WRONG));
        }
    };
    for change in &migration.changes {
        eprintln!("{name}: {change}");
    }
    let Some(new) = migration.text else {
        eprintln!("{name}: there is nothing to migrate");
        if !arguments.check && !arguments.in_place {
            print!("{old}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    if arguments.check {
        return Ok(ExitCode::from(OUTDATED));
    }
    // Mistakes that are left were there before, in other sections: they are told, and the new file is no worse.
    if let Ok(document) = Document::parse(&name, &new) {
        for mistake in check::check(document).mistakes {
            eprintln!("still to do, as of the new file's lines: {mistake}");
        }
    }
    if arguments.in_place {
        replace(file, &new)?;
    } else {
        print!("{new}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The old file stays as FILE.bak; a crash leaves either the old or the new one, whole. An older backup is not lost.
fn replace(file: &Path, new: &str) -> anyhow::Result<()> {
    // Behind a link is the file; the link stays one.
    let file = &fs::canonicalize(file).with_context(|| format!("can't find {}", file.display()))?;
    let beside = |ending: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let (backup, fresh) = (beside(".bak"), beside(".new"));
    if backup.exists() {
        bail!("{} is there already: move it away first", backup.display());
    }
    // A copy first, for its mode and owner: the file may hold secrets.
    fs::copy(file, &backup).with_context(|| format!("can't write {}", backup.display()))?;
    let write = || {
        fs::copy(file, &fresh)?;
        let mut out = fs::OpenOptions::new().write(true).truncate(true).open(&fresh)?;
        out.write_all(new.as_bytes())?;
        out.sync_all()?;
        fs::rename(&fresh, file)
    };
    write().with_context(|| format!("can't replace {}; the old one is there still", file.display()))?;
    eprintln!("{}: written; the old one is {}", file.display(), backup.display());
    Ok(())
}
