//! What the process gives up once it has its sockets and directories: root, and all files but those of the mail.

use std::io;
use std::path::PathBuf;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, RulesetError, Scope, path_beneath_rules};
use landlock::{Ruleset, RulesetAttr, RulesetCreatedAttr};
use nix::unistd::{Gid, Group, User, geteuid, setgid, setgroups, setuid};

use crate::config::number;

/// Whether the kernel is asked to refuse whatever this server does not need. `Require` ends the start where it can't.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    Off,
    Auto,
    Require,
}

/// Becomes `user`, a `NAME` or `NAME:GROUP` that may be numbers, with no other group and no way back. The error says why not.
pub(crate) fn become_user(user: &str) -> Result<(), String> {
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let id: Option<u32> = number(name);
    let found = id.map_or_else(|| User::from_name(name), |id| User::from_uid(id.into())).ok().flatten();
    let own = found.map(|user| (user.uid, user.gid)).or(id.map(|id| (id.into(), id.into())));
    let gid = |group: &str| number(group).map(Gid::from_raw).or_else(|| Some(Group::from_name(group).ok()??.gid));
    let ids = own.and_then(|(uid, own_gid)| Some((uid, group.map_or(Some(own_gid), gid)?)));
    let Some((uid, gid)) = ids else { return Err(format!("no such user or group: {user}")) };
    if geteuid() != uid {
        let changed = setgroups(&[gid]).and_then(|()| setgid(gid)).and_then(|()| setuid(uid));
        changed.map_err(|errno| format!("can't become user {user}: {}; only root can", io::Error::from(errno)))?;
    }
    let back = uid.is_root() || setuid(0.into()).is_ok() || (gid.as_raw() != 0 && setgid(0.into()).is_ok());
    if back { Err(format!("user {user} would be root, or could be again")) } else { Ok(()) }
}

/// Has the kernel (Landlock) refuse this thread, and all that it starts, any other use of files than to make, read,
/// write, list, move and remove some below `written`, to read some below `read`, and to remove some below `emptied`; programs;
/// connections; signals to others. The error says what it lacks: before Linux 5.19, moves to another directory.
pub(crate) fn restrict(written: &[PathBuf], read: &[PathBuf], emptied: &[PathBuf]) -> Result<(), RulesetError> {
    let write = AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::MakeDir;
    let write = write | AccessFs::ReadFile | AccessFs::RemoveFile | AccessFs::Refer | AccessFs::Truncate;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    for (paths, may) in [(written, write), (read, AccessFs::ReadFile.into()), (emptied, AccessFs::RemoveFile.into())] {
        ruleset = ruleset.add_rules(path_beneath_rules(paths, may))?;
    }
    ruleset.restrict_self().map(drop)
}
