/* cpus_linux.c: sys_procs: CPUs in the affinity mask, or the cgroup's CPU quota if that is less.
 *
 * As Go 1.25 has it: the quota of the process's own cgroup (not of those above it, which containers hide anyway), v2's cpu.max or
 * v1's cpu.cfs_quota_us and cpu.cfs_period_us; rounded up, and to 2 at least.
 *   1. /proc/self/cgroup: "N:cpu,cpuacct:/path" names v1's cpu hierarchy, and goes before v2's "0::/path".
 *   2. /proc/self/mountinfo: where a cgroup2, or a cgroup with the option cpu, is mounted, and which part of its tree
 *      (root) shows there.  The group's folder is the mount point and what of the path lies below the root.
 * Differs: it is read once, when the set starts; Go looks again every second.
 */
#if defined(__linux__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sys.h"

#include <stdio.h>

/* The whole file, or NULL.  Files of /proc have no size: it is read in pieces. */
static char *
slurp(const char *root, const char *path)
{
    char name[4096 + 64];
    size_t size = 0, cap = 0;
    char *text = NULL;

    snprintf(name, sizeof name, "%s%s", root, path);
    FILE *f = fopen(name, "re");
    if (f == NULL)
        return NULL;
    for (;;) {
        if (cap - size < 1024) {
            char *more = sys_realloc(text, cap + 16384);
            if (more == NULL)
                break;
            text = more;
            cap += 16384;
        }
        size_t n = fread(text + size, 1, cap - size - 1, f);
        size += n;
        if (n == 0)
            break;
    }
    fclose(f);
    if (text != NULL)
        text[size] = '\0';
    return text;
}

/* Is word one of the list, whose words are separated by commas? */
static bool
listed(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = list; p != NULL; p = strchr(p, ','), p = p != NULL ? p + 1 : NULL)
        if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == '\0'))
            return true;
    return false;
}

/* The process's path in v1's cpu hierarchy (*v1) or in v2's, in place; NULL when it is in neither. */
static char *
own_path(char *text, bool *v1)
{
    char *v2path = NULL, *save = NULL;

    *v1 = false;
    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char *controllers = strchr(line, ':');
        char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL)
            continue;
        *controllers++ = *path++ = '\0';
        if (listed(controllers, "cpu")) {
            *v1 = true;
            return path;
        }
        if (*controllers == '\0')
            v2path = path;
    }
    return v2path;
}

/* mountinfo writes blanks and backslashes as \ooo. */
static void
unescape(char *s)
{
    char *to = s;

    for (; *s != '\0'; to++) {
        if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
            *to = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + s[3] - '0');
            s += 4;
        }
        else {
            *to = *s++;
        }
    }
    *to = '\0';
}

/* A line: 31 23 0:28 ROOT MOUNTPOINT options [tags ...] - FSTYPE source SUPEROPTIONS */
static bool
group_folder(char *mounts, bool v1, const char *path, char *out, size_t size)
{
    char *save = NULL;

    for (char *line = strtok_r(mounts, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char *tail = strstr(line, " - "), *field[5], *fs[3], *inner = NULL;
        int n = 0;
        if (tail == NULL)
            continue;
        *tail = '\0';
        for (char *w = strtok_r(line, " ", &inner); w != NULL && n < 5; w = strtok_r(NULL, " ", &inner))
            field[n++] = w;
        if (n < 5)
            continue;
        n = 0;
        for (char *w = strtok_r(tail + 3, " ", &inner); w != NULL && n < 3; w = strtok_r(NULL, " ", &inner))
            fs[n++] = w;
        if (n < 3 || strcmp(fs[0], v1 ? "cgroup" : "cgroup2") != 0 || (v1 && !listed(fs[2], "cpu")))
            continue;
        char *root = field[3];
        unescape(root);
        unescape(field[4]);
        size_t below = strcmp(root, "/") == 0 ? 0 : strlen(root);
        if (strncmp(path, root, below) != 0 || (path[below] != '/' && path[below] != '\0'))
            continue; /* shows another part of the tree */
        int len = snprintf(out, size, "%s%s", field[4], strcmp(path + below, "/") == 0 ? "" : path + below);
        return len > 0 && (size_t)len < size;
    }
    return false;
}

static double
number(const char *root, const char *folder, const char *file)
{
    char path[4096 + 32];

    snprintf(path, sizeof path, "%s/%s", folder, file);
    char *text = slurp(root, path);
    double n = text != NULL ? strtod(text, NULL) : -1;
    sys_free(text);
    return n;
}

double
sys_cpu_quota(const char *root)
{
    char folder[4096], path[4096 + 32];
    char *groups = slurp(root, "/proc/self/cgroup"), *mounts = slurp(root, "/proc/self/mountinfo");
    double limit = 0;
    bool v1;
    char *own = groups != NULL ? own_path(groups, &v1) : NULL;

    if (own != NULL && mounts != NULL && group_folder(mounts, v1, own, folder, sizeof folder)) {
        if (v1) {
            double q = number(root, folder, "cpu.cfs_quota_us"), period = number(root, folder, "cpu.cfs_period_us");
            if (q > 0 && period > 0)
                limit = q / period;
        }
        else {
            snprintf(path, sizeof path, "%s/cpu.max", folder);
            char *text = slurp(root, path), *end = text;
            double q = text != NULL ? strtod(text, &end) : 0; /* "max 100000", or "150000 100000" */
            double period = end != text ? strtod(end, NULL) : 0;
            if (q > 0 && period > 0)
                limit = q / period;
            sys_free(text);
        }
    }
    sys_free(groups);
    sys_free(mounts);
    return limit;
}

#else
#include "sys.h"

double
sys_cpu_quota(const char *root)
{
    (void)root;
    return 0;
}
#endif

/* Go: runtime.adjustCgroupGOMAXPROCS */
int
sys_procs_within(int ncpu, double quota)
{
    if (quota <= 0 || quota >= ncpu)
        return ncpu;
    int n = (int)quota;
    n += quota > n;
    n = n < 2 ? 2 : n;
    return n < ncpu ? n : ncpu;
}

/* Go: runtime.defaultGOMAXPROCS */
int
sys_procs(void)
{
    return sys_procs_within(sys_ncpu(), sys_cpu_quota(""));
}
