//! What of the environment would change a launch without the command line saying so, and how it is kept out. [I/O]
//!
//! Source: `common/arg.cpp` `common_params_parse_ex`, `common_params_apply_system_config`; `tools/server/server-http.cpp`
//! (`AIP_*`), `tools/server/server-models.cpp` (`LLAMA_SERVER_*`), b11434.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The variable that makes a server ask for a key.
pub const API_KEY: &str = "LLAMA_API_KEY";

/// The variables among `names` that llama-server would heed. `keeps_key` leaves [`API_KEY`] to it.
pub(super) fn to_remove(names: impl IntoIterator<Item = impl AsRef<OsStr>>, keeps_key: bool) -> Vec<String> {
    let heeded = |name: &String| {
        name.starts_with("LLAMA_ARG_")
            || name.starts_with("AIP_")
            || name.starts_with("LLAMA_SERVER_")
            || ["LLAMA_CACHE_DEBUG", "LLAMA_GRAPH_REUSE_DISABLE", "LLAMA_TRACE"].contains(&name.as_str())
            || (name == API_KEY && !keeps_key)
    };
    super::find::names(names).into_iter().filter(heeded).collect()
}

/// llama.cpp's configuration files that exist: the system's, which cannot be kept from it, and the user's, which can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFiles {
    /// `/etc/llama.cpp/config.ini`.
    pub system: Option<PathBuf>,
    /// `${XDG_CONFIG_HOME:-~/.config}/llama.cpp/config.ini`.
    pub user: Option<PathBuf>,
}

impl ConfigFiles {
    /// Those of this computer.
    pub fn here() -> Self {
        let there = |file: &PathBuf| file.is_file();
        let all = Self::of(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"));
        Self { system: all.system.filter(there), user: all.user.filter(there) }
    }

    /// Where llama.cpp looks for them, by two variables of the environment.
    fn of(config_home: Option<OsString>, home: Option<OsString>) -> Self {
        let of_user = config_home
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
            .or_else(|| home.map(|home| Path::new(&home).join(".config")));
        let file = |folder: &Path| folder.join("llama.cpp/config.ini");
        Self { system: Some(file(Path::new("/etc"))), user: of_user.map(|folder| file(&folder)) }
    }
}

/// Variables to set for a server: an empty folder where it looks for the user's configuration, and idle threads that sleep
/// where an RPC server on this computer needs the same cores.
pub(super) fn to_set(files: &ConfigFiles, empty_folder: &Path, uses_rpc: bool) -> Vec<(&'static str, OsString)> {
    let mut set = Vec::new();
    if files.user.is_some() {
        set.push(("XDG_CONFIG_HOME", empty_folder.as_os_str().to_os_string()));
    }
    if uses_rpc {
        set.push(("OMP_WAIT_POLICY", "passive".into()));
    }
    set
}

/// What a person should know about it, a sentence each.
pub(super) fn notes(removed: &[String], files: &ConfigFiles) -> Vec<String> {
    let mut notes = Vec::new();
    if !removed.is_empty() {
        notes.push(format!("{} kept from llama-server: the launch is what its command line says", removed.join(", ")));
    }
    if let Some(file) = &files.user {
        notes.push(format!("`{}` kept from llama-server, for the same reason", file.display()));
    }
    if let Some(file) = &files.system {
        notes.push(format!("llama-server reads `{}` first, which cannot be kept from it", file.display()));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_llama_server_heeds_is_taken_away() {
        let names = ["PATH", "LLAMA_ARG_N_CPU_MOE", "AIP_HTTP_PORT", "LLAMA_API_KEY", "CUDA_VISIBLE_DEVICES"];
        assert_eq!(to_remove(names, false), ["AIP_HTTP_PORT", "LLAMA_API_KEY", "LLAMA_ARG_N_CPU_MOE"]);
        assert_eq!(to_remove(names, true), ["AIP_HTTP_PORT", "LLAMA_ARG_N_CPU_MOE"]);
    }

    #[test]
    fn llama_cpp_has_two_configuration_files() {
        let files = |config: Option<&str>, home: Option<&str>| {
            let files = ConfigFiles::of(config.map(OsString::from), home.map(OsString::from));
            assert_eq!(files.system.as_deref(), Some(Path::new("/etc/llama.cpp/config.ini")));
            files.user.map(|file| file.display().to_string())
        };
        assert_eq!(files(Some("/c"), Some("/h")).as_deref(), Some("/c/llama.cpp/config.ini"));
        assert_eq!(files(Some(""), Some("/h")).as_deref(), Some("/h/.config/llama.cpp/config.ini"));
        assert_eq!(files(None, None), None);
    }

    #[test]
    fn the_users_file_is_hidden_and_the_systems_is_told_of() {
        let files = ConfigFiles { system: Some("/etc/x".into()), user: Some("/home/me/y".into()) };
        let set = to_set(&files, Path::new("/empty"), true);
        assert_eq!(set.first(), Some(&("XDG_CONFIG_HOME", OsString::from("/empty"))));
        assert_eq!(notes(&["LLAMA_ARG_X".to_string()], &files).len(), 3);
        assert!(to_set(&ConfigFiles::default(), Path::new("/empty"), false).is_empty());
    }
}
