/* trace.c: GMPDEBUG and schedtrace.
 *
 * Everything here reads the scheduler's words as they are, without its locks: a trace must come also when something is stuck,
 * and a line that is off by one is no harm.  Gs, Ms and Ps are never freed, so all pointers stay good.  Nothing is allocated.
 * The lines are Go's (runtime.schedtrace), less what does not exist here; one set of lines for each set of Ps that is in use.
 */
#include "trace.h"

#include <stdio.h>
#include <unistd.h>

DebugVars debugvars = {.sigquit = true};

/* ---- text ---- */

void
out_flush(Out *o)
{
    for (uint32_t done = 0; done < o->n;) {
        ssize_t w = write(o->fd, o->buf + done, o->n - done);
        if (w <= 0)
            break; /* nobody reads: there is no better place to say so */
        done += (uint32_t)w;
    }
    o->n = 0;
}

void
out_char(Out *o, char c)
{
    if (o->n == sizeof o->buf)
        out_flush(o);
    o->buf[o->n++] = c;
}

void
out_str(Out *o, const char *s)
{
    while (*s != '\0')
        out_char(o, *s++);
}

void
out_int(Out *o, int64_t n)
{
    char digits[20];
    int i = 0;
    uint64_t u = n < 0 ? -(uint64_t)n : (uint64_t)n;
    do
        digits[i++] = (char)('0' + u % 10);
    while ((u /= 10) != 0);
    if (n < 0)
        out_char(o, '-');
    while (i > 0)
        out_char(o, digits[--i]);
}

void
out_hex(Out *o, uint64_t n, int digits)
{
    while (digits-- > 0)
        out_char(o, "0123456789abcdef"[n >> (4 * digits) & 15]);
}

/* ---- GMPDEBUG ---- */

#define LONGEST_MS 86400000

static bool
is_key(const char *item, size_t len, const char *key)
{
    return len == strlen(key) && memcmp(item, key, len) == 0;
}

/* One key=value of GMPDEBUG.  Returns what is wrong with it, or NULL. */
static const char *
set_var(const char *item, size_t len)
{
    const char *eq = memchr(item, '=', len);
    size_t keylen = eq != NULL ? (size_t)(eq - item) : len;
    bool ms = is_key(item, keylen, "schedtrace");
    bool *flag = is_key(item, keylen, "scheddetail") ? &debugvars.scheddetail
                 : is_key(item, keylen, "sigquit")   ? &debugvars.sigquit
                                                     : NULL;
    if (!ms && flag == NULL)
        return "is not known";
    const char *wrong = ms ? "takes milliseconds, 0 to 86400000" : "takes 0 or 1";
    size_t digits = eq != NULL ? len - keylen - 1 : 0;
    if (digits < 1 || digits > 8)
        return wrong;
    int64_t value = 0;
    for (const char *p = eq + 1; p < item + len; p++) {
        if (*p < '0' || *p > '9')
            return wrong;
        value = value * 10 + (*p - '0');
    }
    if (value > (ms ? LONGEST_MS : 1))
        return wrong;
    if (ms)
        debugvars.schedtrace = value * 1000 * 1000;
    else
        *flag = value != 0;
    return NULL;
}

static int64_t start;

void
debug_init(void)
{
    static bool done;
    if (done)
        return;
    done = true;
    start = nanotime();
    const char *p = getenv("GMPDEBUG");
    bool warned = false;
    while (p != NULL && *p != '\0') {
        size_t len = strcspn(p, ",");
        const char *wrong = len != 0 ? set_var(p, len) : NULL;
        if (wrong != NULL && !warned) {
            warned = true;
            fprintf(
                stderr,
                "gmp: GMPDEBUG: \"%.*s\" is ignored: it %s; what there is: schedtrace=MILLISECONDS, scheddetail=0|1, "
                "sigquit=0|1, with commas between\n",
                (int)(len < 100 ? len : 100), p, wrong);
        }
        p += len + (p[len] == ',');
    }
}

/* ---- how long a goroutine has been waiting ---- */

static uint32_t skew;

void
add_to_waits(uint32_t seconds)
{
    skew += seconds;
}

GMP_RACY uint32_t
minutes_waited(G *gp)
{
    if (atomic_load_relaxed(&gp->status) != G_WAITING)
        return 0;
    uint32_t now = (uint32_t)(nanotime() / 1000000000) + skew, since = gp->waitsince;
    return now > since ? (now - since) / 60 : 0;
}

/* ---- schedtrace ---- */

static void
field(Out *o, const char *name, int64_t value)
{
    out_char(o, ' ');
    out_str(o, name);
    out_char(o, '=');
    out_int(o, value);
}

/* Go prints nil for what is not there. */
static void
field_or_nil(Out *o, const char *name, bool is, int64_t value)
{
    if (is) {
        field(o, name, value);
        return;
    }
    out_char(o, ' ');
    out_str(o, name);
    out_str(o, "=nil");
}

static bool
in_call(G *gp)
{
    return gp->cls->detached != NULL && gp->cls->detached(gp);
}

static GMP_RACY void
trace_p(Out *o, P *pp)
{
    uintptr_t owner = atomic_load_relaxed(&pp->owner);
    M *mp = (M *)(owner & ~P_RUNNING);
    G *gp = mp != NULL ? atomic_load_acquire(&mp->curg) : NULL;
    /* Go's numbers: _Pidle, _Prunning, _Psyscall */
    int status = mp == NULL ? 0 : (owner & P_RUNNING) != 0 && gp != NULL && in_call(gp) ? 2 : 1;
    out_str(o, "  P");
    out_int(o, pp->id);
    out_char(o, ':');
    field(o, "status", status);
    field(o, "schedtick", atomic_load_relaxed(&pp->schedtick));
    field_or_nil(o, "m", mp != NULL, mp != NULL ? mp->id : 0);
    field(o, "runqsize", runqlen(pp));
    uint32_t gfree = 0;
    for (int c = 0; c < SET_CLASSES; c++)
        gfree += pp->gfree[c].n;
    field(o, "gfreecnt", gfree);
    field(o, "timerslen", pp->timers.len);
    out_char(o, '\n');
}

static GMP_RACY void
trace_m(Out *o, M *mp)
{
    G *gp = atomic_load_acquire(&mp->curg), *locked = mp->thread_g;
    P *pp = mp->p;
    bool has_p = pp != NULL && (M *)(atomic_load_relaxed(&pp->owner) & ~P_RUNNING) == mp;
    out_str(o, "  M");
    out_int(o, mp->id);
    out_char(o, ':');
    field_or_nil(o, "p", has_p, has_p ? pp->id : 0);
    field_or_nil(o, "curg", gp != NULL, gp != NULL ? (int64_t)gp->goid : 0);
    out_str(o, mp->spinning ? " spinning=true" : " spinning=false");
    out_str(o, mp->idle ? " blocked=true" : " blocked=false");
    field_or_nil(o, "lockedg", locked != NULL, locked != NULL ? (int64_t)locked->goid : 0);
    out_char(o, '\n');
}

static GMP_RACY void
trace_g(Out *o, G *gp)
{
    static const uint8_t go_status[] = {[G_IDLE] = 0, [G_RUNNABLE] = 1, [G_RUNNING] = 2, [G_WAITING] = 4, [G_DEAD] = 6};
    uint32_t status = atomic_load_relaxed(&gp->status);
    if (status == G_IDLE || status >= G_DEAD)
        return;
    M *mp = gp->m, *locked = gp->lockedm;
    out_str(o, "  G");
    out_int(o, (int64_t)gp->goid);
    out_char(o, ':');
    field(o, "status", status == G_RUNNING && in_call(gp) ? 3 : go_status[status]); /* 3: _Gsyscall */
    out_char(o, '(');
    out_str(o, status == G_WAITING ? wait_reason_name((WaitReason)gp->waitreason) : "");
    out_char(o, ')');
    field_or_nil(o, "m", status == G_RUNNING && mp != NULL, mp != NULL ? mp->id : 0);
    field_or_nil(o, "lockedm", locked != NULL, locked != NULL ? locked->id : 0);
    out_char(o, '\n');
}

static GMP_RACY void
trace_details(Out *o, Sched *sched)
{
    for (uint32_t i = 0; i < sched->np; i++)
        trace_p(o, sched->allp[i]);
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink)
        if (mp->set == sched && !atomic_load_relaxed(&mp->dead))
            trace_m(o, mp);
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink)
        if (mp->set == sched && !atomic_load_relaxed(&mp->dead) && mp->thread_g != NULL)
            trace_g(o, mp->thread_g);
    for (int c = 0; c < SET_CLASSES; c++) {
        const Class *cls = atomic_load_acquire(&sched->classes[c]); /* pairs with malg_here */
        size_t n = cls != NULL ? stack_count(cls->stack) : 0;
        for (size_t i = 0; i < n; i++) {
            G *gp = slot_g(cls, stack_at(cls->stack, i));
            if (gp->cls == cls && gp->stack_lo != NULL)
                trace_g(o, gp);
        }
    }
}

static GMP_RACY void
trace_set(Out *o, Sched *sched, int64_t ms)
{
    static const char *const names[SETS] = {[SET_PYTHON] = " set=python\n", [SET_NATIVE] = " set=native\n"};
    out_str(o, "SCHED ");
    out_int(o, ms);
    out_str(o, "ms:");
    field(o, "gomaxprocs", sched->np);
    field(o, "idleprocs", sched->npidle);
    field(o, "threads", sched->nm);
    field(o, "spinningthreads", sched->nmspinning);
    field(o, "idlethreads", sched->nmidle);
    field(o, "runqueue", sched->runq.n);
    if (!debugvars.scheddetail) {
        for (uint32_t i = 0; i < sched->np; i++) {
            out_str(o, i == 0 ? " [" : " ");
            out_int(o, runqlen(sched->allp[i]));
        }
        out_char(o, ']');
    }
    out_str(o, names[sched->set]);
    if (debugvars.scheddetail)
        trace_details(o, sched);
    out_flush(o);
}

int64_t
schedtrace(int64_t now)
{
    static int64_t next;
    if (debugvars.schedtrace == 0)
        return -1;
    if (now >= next) {
        Out o = {.fd = STDERR_FILENO};
        for (int s = 0; s < SETS; s++)
            if (atomic_load(&scheds[s].np) != 0)
                trace_set(&o, &scheds[s], (now - start) / 1000000);
        next = now + debugvars.schedtrace;
    }
    return next - now;
}
