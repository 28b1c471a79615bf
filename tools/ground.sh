# shellcheck shell=bash
# Sourced by run and test: installing what is missing, configuring, building. Bash; needs nothing but a base Debian.
# Every sentence is said in English or Chinese, as the locale or --lang asks for.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export CCACHE_DIR="${CCACHE_DIR:-${HOME:-/tmp}/.cache/ccache}"

ground_chinese=no
case "${LC_ALL:-${LC_MESSAGES:-${LANG:-}}}" in zh*) ground_chinese=yes ;; esac

choose_language() {  # the arguments of the command line
  local previous=""
  for argument in "$@"; do
    case "$argument" in --lang=*) previous=--lang argument=${argument#--lang=} ;; esac
    if [[ $previous == --lang ]]; then
      case "$argument" in zh*) ground_chinese=yes ;; *) ground_chinese=no ;; esac
    fi
    previous=$argument
  done
}

say() {  # English, Chinese; on standard error, since standard output belongs to the verb
  if [[ $ground_chinese == yes ]]; then printf '%s\n' "$2" >&2; else printf '%s\n' "$1" >&2; fi
}

stop() {
  say "$1" "$2"
  exit 2
}

packages_of() {  # groups…: the names in tools/packages.txt
  local group name
  while read -r group name; do
    case " $* " in *" $group "*) printf '%s\n' "$name" ;; esac
  done <"$root/tools/packages.txt"
}

missing_packages() {
  local name
  while read -r name; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || printf '%s ' "$name"
  done < <(packages_of "$@")
}

# Installs what is missing and nothing else: with everything there, neither apt nor the network is touched.
install_packages() {  # groups…
  if ! command -v dpkg-query >/dev/null; then
    say "This is no Debian: making do with the compiler and libraries that are here (tools/packages.txt lists what is needed)." \
        "这不是 Debian 系统：将直接使用现有的编译器和库（所需清单见 tools/packages.txt）。"
    return
  fi
  local missing as_root=()
  missing=$(missing_packages "$@")
  [[ -z $missing ]] && return
  missing=${missing% }
  if ((EUID != 0)); then
    command -v sudo >/dev/null ||
      stop "These packages are missing and only root can install them. As root: apt-get install -y $missing" \
           "缺少以下软件包，且只有 root 才能安装。请以 root 身份执行：apt-get install -y $missing"
    as_root=(sudo)
  fi
  local log=$root/build/install.log
  mkdir -p "$root/build"
  say "Installing: $missing" "正在安装：$missing"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get)
  # shellcheck disable=SC2086
  if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    stop "Installing failed (all of it: $log). Check the network and the apt sources, or install by hand: apt-get install -y $missing" \
         "安装失败（完整记录：$log）。请检查网络和 apt 源，或手动安装：apt-get install -y $missing"
  fi
}

# As many compilers at once as there are processors, and no more than memory holds (about 1 GiB each).
build_jobs() {
  local processors available limit used
  processors=$(nproc 2>/dev/null || echo 1)
  available=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo 2>/dev/null || echo 1)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [[ $limit =~ ^[0-9]+$ ]]; then
    used=$(cat /sys/fs/cgroup/memory.current 2>/dev/null || echo 0)
    limit=$(((limit - used) / 1073741824))
    ((limit < available)) && available=$limit
  fi
  ((available < 1)) && available=1
  echo "${FATHOM_JOBS:-$((processors < available ? processors : available))}"
}

configure() {  # build folder, cmake arguments…
  local folder=$1 log=$1/configure.log
  shift
  mkdir -p "$folder"
  # A tree that was moved or copied cannot use the old cache.
  if [[ -f $folder/CMakeCache.txt ]] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$folder/CMakeCache.txt"; then
    rm -rf "$folder/CMakeCache.txt" "$folder/CMakeFiles" "$folder/build.ninja"
  fi
  if ! cmake -S "$root" -B "$folder" -G Ninja "$@" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    stop "Configuring failed (all of it: $log)." "配置失败（完整记录：$log）。"
  fi
}

# One line that moves on a terminal; a line for every tenth elsewhere.
show_progress() {  # what is built; ninja's output on standard input, copied to the log named second
  local line shown=-1 finished total percent tenth
  while IFS= read -r line; do
    printf '%s\n' "$line"
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    finished=${BASH_REMATCH[1]} total=${BASH_REMATCH[2]}
    ((total < 3)) && continue
    percent=$((100 * finished / total)) tenth=$((10 * finished / total))
    if [[ -t 2 ]]; then
      printf '\r\033[K%s %d/%d (%d %%, %d s)' "$1" "$finished" "$total" "$percent" "$SECONDS" >&2
    elif ((tenth != shown)); then
      printf '%s %d/%d (%d %%, %d s)\n' "$1" "$finished" "$total" "$percent" "$SECONDS" >&2
      shown=$tenth
    fi
  done >"$2"
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

build() {  # build folder, targets…
  local folder=$1 log=$1/build.log label="Building" jobs
  shift
  [[ $ground_chinese == yes ]] && label="正在编译"
  jobs=$(build_jobs)
  if ! NINJA_STATUS='[%f/%t] ' ninja -C "$folder" -j "$jobs" "$@" 2>&1 | show_progress "$label" "$log"; then
    grep -v '^\[' "$log" | tail -n 30 >&2
    stop "The build failed (all of it: $log)." "编译失败（完整记录：$log）。"
  fi
}

# Two runs at once wait for each other instead of building into the same folder.
lock_folder() {
  mkdir -p "$1"
  exec 9>"$1/.ground.lock"
  if ! flock -n 9; then
    say "Waiting for another ./run or ./test that is building here." "另一个 ./run 或 ./test 正在此处编译，等待其完成。"
    flock 9
  fi
}
unlock_folder() { exec 9>&-; }
