//! The environment of a kernel.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use jupyter_protocol::kernelspec::expand_env;

use crate::{InheritEnv, LocalOptions};

/// Variables by name.
pub(crate) type Env = BTreeMap<OsString, OsString>;

/// Libraries take this variable as a sign that they run in Jupyter. ipykernel exits when the process ends whose id is
/// the variable's value, unless the value is 1. Kernels must outlive their provider, so the value is 1.
const PARENT_PID: (&str, &str) = ("JPY_PARENT_PID", "1");

/// Composes a kernel's environment. The request's variables take precedence over the kernelspec's, and these over the
/// inherited ones.
///
/// [`LocalOptions::inherit_over_kernelspec`] reverses the last two for the variables that it names. As in
/// `jupyter_client`, `${NAME}` in a kernelspec's value refers to a variable of the request or an inherited one.
pub(crate) fn compose(
    options: &LocalOptions,
    own: impl IntoIterator<Item = (OsString, OsString)>,
    kernelspec: &BTreeMap<String, String>,
    request: &BTreeMap<String, String>,
) -> Env {
    let mut env: Env = own
        .into_iter()
        .filter(|(name, _)| is_inherited(&options.inherit_env, name))
        .collect();
    let is_kept = |name: &str| options.inherit_over_kernelspec.contains(name) && env.contains_key(OsStr::new(name));
    let expanded: Env = kernelspec
        .iter()
        .filter(|(name, _)| !is_kept(name))
        .map(|(name, template)| {
            let value = expand_env(template, |name| match request.get(name) {
                Some(value) => Some(value.clone()),
                None => Some(env.get(OsStr::new(name))?.to_string_lossy().into_owned()),
            });
            (name.into(), value.into())
        })
        .collect();
    env.extend(expanded);
    env.extend(request.iter().map(|(name, value)| (name.into(), value.into())));
    env.insert(PARENT_PID.0.into(), PARENT_PID.1.into());
    env
}

fn is_inherited(inherit: &InheritEnv, name: &OsStr) -> bool {
    match inherit {
        InheritEnv::All => true,
        InheritEnv::AllButSecrets => name.to_str().is_none_or(|name| !is_secret(name)),
        InheritEnv::Only(names) => name.to_str().is_some_and(|name| names.contains(name)),
    }
}

/// Whether the variable contains a token that grants access to a Jupyter server or gateway.
fn is_secret(name: &str) -> bool {
    name.ends_with("_AUTH_TOKEN") || matches!(name, "KERNELMUX_TOKEN" | "JUPYTER_TOKEN" | "JPY_API_TOKEN")
}

/// Checks the request's variables.
///
/// # Errors
/// The reason why a process cannot have one of the variables.
pub(crate) fn check(request: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, value) in request {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!(
                "{name:?} cannot be an environment variable: its name must not be empty or contain '=' or NUL"
            ));
        }
        if value.contains('\0') {
            return Err(format!(
                "the environment variable {name} contains a NUL character, which is not allowed"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn composed(
        inherit: InheritEnv,
        kernelspec: &[(&str, &str)],
        request: &[(&str, &str)],
    ) -> BTreeMap<String, String> {
        let own = strings(&[
            ("PATH", "/bin"),
            ("HOME", "/h"),
            ("KG_AUTH_TOKEN", "secret"),
            ("KERNELMUX_TOKEN", "secret"),
            ("JPY_PARENT_PID", "77"),
        ]);
        let own = own.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut options = LocalOptions::new("/nowhere");
        options.inherit_env = inherit;
        options.inherit_over_kernelspec = ["HOME".to_owned(), "UNSET".to_owned()].into();
        compose(&options, own, &strings(kernelspec), &strings(request))
            .into_iter()
            .map(|(name, value)| (name.into_string().unwrap(), value.into_string().unwrap()))
            .collect()
    }

    #[test]
    fn request_variables_take_precedence_and_tokens_are_not_inherited() {
        let env = composed(
            InheritEnv::AllButSecrets,
            &[
                ("PATH", "/opt:${PATH}"),
                ("WHO", "$KERNEL_USERNAME ${NOBODY}"),
                ("X", "spec"),
            ],
            &[("KERNEL_USERNAME", "ann"), ("X", "caller"), ("JPY_PARENT_PID", "7")],
        );
        assert_eq!(
            env,
            strings(&[
                ("PATH", "/opt:/bin"),
                ("HOME", "/h"),
                ("WHO", "ann ${NOBODY}"),
                ("X", "caller"),
                ("KERNEL_USERNAME", "ann"),
                ("JPY_PARENT_PID", "1"),
            ])
        );
    }

    #[test]
    fn by_default_kernels_do_not_inherit_the_programs_own_settings() {
        let own = [
            ("PATH", "/bin"),
            ("DATABASE_URL", "secret"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        let own = own.map(|(name, value)| (name.into(), value.into()));
        let mut options = LocalOptions::new("/nowhere");
        let names = |options: &LocalOptions| -> Vec<_> {
            let env = compose(options, own.clone(), &BTreeMap::new(), &BTreeMap::new());
            env.into_keys().map(|name| name.into_string().unwrap()).collect()
        };
        assert_eq!(names(&options), ["JPY_PARENT_PID", "PATH"]);
        options.inherit_env = InheritEnv::basic_and(["DATABASE_URL"]);
        assert_eq!(names(&options), ["DATABASE_URL", "JPY_PARENT_PID", "PATH"]);
    }

    #[test]
    fn only_named_variables_are_inherited() {
        let only = InheritEnv::Only(["HOME".to_owned()].into());
        assert_eq!(
            composed(only, &[], &[]),
            strings(&[("HOME", "/h"), ("JPY_PARENT_PID", "1")])
        );
        assert_eq!(
            composed(InheritEnv::Only([].into()), &[], &[]),
            strings(&[("JPY_PARENT_PID", "1")])
        );
    }

    #[test]
    fn inherited_variables_can_take_precedence_over_the_kernelspec() {
        let spec = [("HOME", "spec"), ("UNSET", "spec"), ("PATH", "${HOME}")];
        let env = composed(InheritEnv::AllButSecrets, &spec, &[]);
        assert_eq!((&*env["HOME"], &*env["UNSET"], &*env["PATH"]), ("/h", "spec", "/h"));
        let env = composed(InheritEnv::AllButSecrets, &spec, &[("HOME", "caller")]);
        assert_eq!(env["HOME"], "caller");
    }

    #[test]
    fn invalid_variables_are_refused() {
        assert!(check(&strings(&[("A", "b=c\n")])).is_ok());
        for (name, value) in [("", ""), ("a=b", ""), ("a\0", ""), ("a", "\0")] {
            assert!(check(&strings(&[(name, value)])).is_err(), "{name:?} {value:?}");
        }
    }
}
