//! The commands that run inside the sandbox, as the agent, to hand its work over.
//!
//! Everything here runs in hostile territory and protects nothing by itself: it only makes an honest agent's work
//! come out whole whatever the agent did to `.git/config`, hooks, branches or the index. What comes out is checked
//! on the host.

use orchestra_events::CommitId;

use super::History;

/// The message of the commit that holds what the agent left uncommitted. The host writes its own in its place.
pub(super) const LEFTOVER: &str = "Work of the agent";

/// Stages the work tree into an index of its own, in a git directory of its own that shares only the objects.
///
/// - The repository's config, hooks, fsmonitor, filters and excluded identity are never read: the fresh directory
///   has none.
/// - It starts from the agent's last commit, so that files it added by force stay, or else from the base.
/// - Nested repositories are left out (git would record them as submodules nobody can fetch), except submodules
///   that the base already has, which stay as they were.
/// - The base is made the end of history, so that a shortened or damaged past does not matter.
/// - Its own files go wherever there is room: an agent that filled `/tmp` has not lost its work.
/// - Named pipes are removed from `.git`, and in place of files that git reads such as `.gitignore`: git would wait for
///   somebody to write into them.
const STAGE: &str = r#"
set -euo pipefail
umask 022
base=$1
history=$2
leftover=$3
unset $(git rev-parse --local-env-vars) GIT_EXTERNAL_DIFF GIT_DIFF_OPTS GIT_TRACE 2>/dev/null || true
export LC_ALL=C GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_ATTR_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0 GIT_OPTIONAL_LOCKS=0 GIT_NO_REPLACE_OBJECTS=1
root=$(pwd -P)
tmp=
trap 'rm -rf "$tmp"' EXIT
gone() { printf 'failed history-gone\n'; exit 3; }
full() { printf 'failed disk-full\n'; exit 5; }
room() { if head -c 65536 /dev/zero > "$1/room.$$" 2>/dev/null; then rm -f "$1/room.$$"; else rm -f "$1/room.$$"; return 1; fi; }
unreadable() { room "$root/.git/objects" || full; printf 'failed unreadable\n'; exit 4; }
for place in "${HOME:-/tmp}" /var/tmp /tmp /dev/shm; do
  tmp=$(mktemp -d -p "$place" 2>/dev/null) || continue
  if room "$tmp"; then break; fi
  rm -rf "$tmp"; tmp=
done
[ -n "$tmp" ] || full
[ -d "$root/.git/objects" ] || gone
find "$root/.git/" -type p -exec rm -f {} + 2>/dev/null || true
find . -name .git -prune -o -type p -name '.git*' -exec rm -f {} + 2>/dev/null || true
git init -q --bare --template= "$tmp/git" >&2
git --git-dir="$tmp/git" config core.bare false
printf '%s\n' "$base" > "$tmp/git/shallow"
mkdir -p "$tmp/git/info"
if [ -f "$root/.git/info/exclude" ]; then cp "$root/.git/info/exclude" "$tmp/git/info/exclude" 2>/dev/null || true; fi
head=$(git --git-dir="$root/.git" rev-parse -q --verify 'HEAD^{commit}' 2>/dev/null) || head=$base
export GIT_DIR="$tmp/git" GIT_WORK_TREE="$root" GIT_INDEX_FILE="$tmp/index" GIT_OBJECT_DIRECTORY="$root/.git/objects"
git cat-file -e "$base^{tree}" 2>/dev/null || gone
git read-tree "$head" 2>/dev/null || git read-tree "$base" 2>/dev/null || gone
printf '.\0' > "$tmp/paths"
find . -mindepth 2 -name .git -prune -print0 2>/dev/null > "$tmp/nested" || true
while IFS= read -r -d '' found; do
  inner=${found#./}; inner=${inner%/.git}
  printf ':(top,exclude,literal)%s\0' "$inner" >> "$tmp/paths"
done < "$tmp/nested"
git -c advice.addEmbeddedRepo=false -c core.preloadIndex=true add -A --pathspec-from-file="$tmp/paths" --pathspec-file-nul >&2 || unreadable
git ls-files -s -z | while IFS= read -r -d '' entry; do
  case $entry in
    160000\ *) path=${entry#*$'\t'}; oid=${entry#160000 }; oid=${oid%% *}
      was=$(git ls-tree -z --full-tree "$base" -- ":(top,literal)$path" | tr -d '\0') || was=
      case $was in
        "160000 commit $oid"*) ;;
        "160000 commit "*) old=${was#160000 commit }; printf '160000 %s 0\t%s\0' "${old:0:40}" "$path" >> "$tmp/fix" ;;
        *) printf '0 0000000000000000000000000000000000000000 0\t%s\0' "$path" >> "$tmp/fix"; echo "left out: nested repository $path" >&2 ;;
      esac ;;
  esac
done
if [ -s "$tmp/fix" ]; then git update-index -z --index-info < "$tmp/fix" >&2; fi
tree=$(git write-tree) || unreadable
"#;

/// Puts the staged tree on top and writes the answer.
///
/// The agent's commits stay below it if all of them lead to the base: a history that does not (amended, merged with
/// older or foreign commits), or that lacks objects, could not be published, so it becomes one commit instead of a
/// failure. The base has no parents here (it is the end of history), so a commit without any shows such a history.
const EXPORT: &str = r#"
if [ "$tree" = "$(git rev-parse "$base^{tree}")" ]; then printf 'unchanged\n'; exit 0; fi
export GIT_AUTHOR_NAME=agent GIT_AUTHOR_EMAIL=agent@sandbox.invalid GIT_COMMITTER_NAME=agent GIT_COMMITTER_EMAIL=agent@sandbox.invalid
below=$base
if [ "$history" = keep ] && [ "$head" != "$base" ] \
  && git rev-list --parents "$head" "^$base" > "$tmp/kept" 2>/dev/null && [ -s "$tmp/kept" ] && ! grep -qv ' ' "$tmp/kept" \
  && git rev-list --objects "$head" "^$base" > /dev/null 2>&1; then
  below=$head
fi
tip=$below
if [ "$tree" != "$(git rev-parse "$below^{tree}")" ]; then
  tip=$(printf '%s\n' "$leftover" | git commit-tree -p "$below" "$tree")
fi
printf 'tip %s\n' "$tip"
printf '%s\n^%s\n' "$tip" "$base" | git -c pack.threads=1 -c core.compression=1 pack-objects -q --revs --thin --stdout
"#;

/// Writes the difference between the base and the staged tree.
const DIFF: &str = r#"
git -c core.quotePath=true diff-tree -p -r --no-ext-diff --no-textconv --no-color --no-renames "$base" "$tree"
"#;

fn argv(last: &str, base: &CommitId, history: History) -> Vec<String> {
    let script = format!("{STAGE}{last}");
    let history = match history {
        History::Keep => "keep",
        History::Squash => "squash",
    };
    ["bash", "--noprofile", "--norc", "-c", &script, "orchestra-export", base.as_str(), history, LEFTOVER]
        .map(str::to_owned)
        .to_vec()
}

/// The command to run inside the sandbox, in the workspace, as the agent: it commits what is there (everything not
/// ignored) and writes the answer on its standard output, which goes to [`super::Git::import`] as it is. With
/// [`History::Keep`] that is one more commit on top of the agent's own, else one on the base.
///
/// The answer is `unchanged\n`, or `tip <oid>\n` and a thin pack, or `failed <reason>\n`.
pub fn export_script(base: &CommitId, history: History) -> Vec<String> {
    argv(EXPORT, base, history)
}

/// The command to run inside the sandbox that writes the unified diff of the work tree (untracked files included)
/// against the base on its standard output. The text is the sandbox's word: show it, never act on it.
pub fn diff_script(base: &CommitId) -> Vec<String> {
    argv(DIFF, base, History::Squash)
}
