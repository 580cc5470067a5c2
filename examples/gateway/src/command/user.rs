//! `kernelmux-gateway user`: makes, lists and removes users and their tokens.

use std::fmt::Write;
use std::path::Path;

use clap::Subcommand;
use kernelmux_gateway::{Role, User, UsersFile, UsersFileError};

/// What to do with the file of users.
#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Add a user and print their token, which is shown only once
    Add {
        /// The name, which owns the user's kernels
        name: String,
        /// user, viewer, operator, admin or server
        #[arg(long, default_value_t = Role::User)]
        role: Role,
        /// A group of the user; repeat the flag for more
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// Give an existing user another token, role and groups; their old token stops working
        #[arg(long)]
        replace: bool,
    },
    /// List the users with their roles and groups
    List,
    /// Remove a user, whose token stops working at once
    Remove {
        /// The name
        name: String,
    },
}

/// Runs the command and returns the text to print.
pub(super) fn run(command: UserCommand, users_file: Option<&Path>) -> Result<String, String> {
    let Some(path) = users_file else {
        return Err("name the file of users with --users-file".to_owned());
    };
    let file = UsersFile::new(path);
    changed(command, &file).map_err(|error| error.to_string())
}

fn changed(command: UserCommand, file: &UsersFile) -> Result<String, UsersFileError> {
    match command {
        UserCommand::Add {
            name,
            role,
            groups,
            replace,
        } => {
            let token = if replace {
                file.replace(&name, role, groups)
            } else {
                file.add(&name, role, groups)
            };
            Ok(format!("{}\n", token?.reveal()))
        }
        UserCommand::List => Ok(table(&file.list()?)),
        UserCommand::Remove { name } => file.remove(&name).map(|()| String::new()),
    }
}

/// One line for each user: name, role and groups, separated by tabs.
fn table(users: &[User]) -> String {
    users.iter().fold(String::new(), |mut table, user| {
        // Writing to a string does not fail.
        let _ = writeln!(table, "{}\t{}\t{}", user.name, user.role, user.groups.join(","));
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_change_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.json");
        let add = |name: &str, replace| UserCommand::Add {
            name: name.to_owned(),
            role: Role::Viewer,
            groups: vec!["staff".to_owned(), "lab".to_owned()],
            replace,
        };
        let token = run(add("ada", false), Some(&path)).unwrap();
        assert!(token.starts_with("kmx_") && token.ends_with('\n') && !token.contains(' '));
        assert!(run(add("ada", false), Some(&path)).unwrap_err().contains("--replace"));
        assert_ne!(run(add("ada", true), Some(&path)).unwrap(), token);
        assert_eq!(run(UserCommand::List, Some(&path)).unwrap(), "ada\tviewer\tstaff,lab\n");
        let remove = || UserCommand::Remove { name: "ada".to_owned() };
        assert_eq!(run(remove(), Some(&path)).unwrap(), "");
        assert!(run(remove(), Some(&path)).unwrap_err().contains("no user ada"));
        assert!(run(UserCommand::List, None).unwrap_err().contains("--users-file"));
    }
}
