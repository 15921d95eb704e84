/* py_dump.c: SIGQUIT: all goroutine stacks on stderr, then exit status 2, as in Go.
 *
 *   1. The handler, on whatever thread, has sysmon called (sysmon_call): nothing more is safe there.
 *   2. sysmon starts a thread that asks for the GIL.  With it, nothing moves while the stacks are read.
 *   3. Whoever has the GIL may not give it back for long, in a C call.  After GIL_WAIT_NS sysmon reads without it.  Most likely
 *      that is as good, as nobody else can run Python code; if not, the worst that can come is a fault, which also ends with
 *      status 2 (py_quitting).
 * In the child of a fork sysmon may not run yet: the handler itself does step 3.
 * No Python code runs, nothing is allocated, no lock is waited for: the interpreter may be in any state.
 *
 * It is installed at import if SIGQUIT has its default action and GMPDEBUG does not say sigquit=0.  signal.signal(SIGQUIT, ...)
 * replaces it.
 */
#include "py_gmp.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "trace.h"

#define GIL_WAIT_NS (INT64_C(1000) * 1000 * 1000)
#define MAX_FRAMES 100 /* of a goroutine; as in Go */
#define MAX_TEXT 500   /* of a name */
#define EXIT_QUIT 2
#define FAULTHANDLER_SHOWS 90 /* threads, goroutines included, in no useful order (100, with some room) */

bool py_quitting;

/* ---- text ---- */

static void
out_utf8(Out *o, Py_UCS4 c)
{
    if (c < 0x80) {
        out_char(o, (char)c);
        return;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t first[] = {0, 0xc0, 0xe0, 0xf0};
    out_char(o, (char)(first[more] | c >> (6 * more)));
    while (more-- > 0)
        out_char(o, (char)(0x80 | (c >> (6 * more) & 0x3f)));
}

static void
out_text(Out *o, PyObject *s)
{
    if (s == NULL || !PyUnicode_Check(s) || !PyUnicode_IS_READY(s)) {
        out_char(o, '?');
        return;
    }
    Py_ssize_t n = PyUnicode_GET_LENGTH(s);
    int kind = (int)PyUnicode_KIND(s);
    const void *data = PyUnicode_DATA(s);
    for (Py_ssize_t i = 0; i < n && i < MAX_TEXT; i++)
        out_utf8(o, PyUnicode_READ(kind, data, i));
    if (n > MAX_TEXT)
        out_str(o, "...");
}

static void
out_line(Out *o, PyCodeObject *code, int line)
{
    out_str(o, "  File \"");
    out_text(o, code->co_filename);
    out_str(o, "\", line ");
    out_int(o, line);
    out_str(o, ", in ");
    out_text(o, code->co_name);
    out_char(o, '\n');
}

static int
out_frames(Out *o, PyThreadState *ts)
{
    PyPlace places[MAX_FRAMES];
    int more, n = tstate_frames(ts, places, MAX_FRAMES, &more);
    if (more > 0) {
        out_str(o, "  ... ");
        out_int(o, more);
        out_str(o, " frames more ...\n");
    }
    for (int i = n; i-- > 0;)
        out_line(o, places[i].code, PyCode_Addr2Line(places[i].code, places[i].lasti));
    return n;
}

static void
out_head(Out *o, uint64_t goid, const char *status, uint32_t minutes)
{
    out_str(o, "goroutine ");
    out_int(o, (int64_t)goid);
    out_str(o, " [");
    out_str(o, status);
    if (minutes > 0) {
        out_str(o, ", ");
        out_int(o, minutes);
        out_str(o, " minutes");
    }
    out_str(o, "]:\n");
}

/* Where fn begins: of a goroutine that has no frame yet. */
static void
out_function(Out *o, PyObject *fn)
{
    if (fn != NULL && PyFunction_Check(fn)) {
        PyCodeObject *code = (PyCodeObject *)((PyFunctionObject *)fn)->func_code;
        out_line(o, code, code->co_firstlineno);
    }
}

static void
out_created(Out *o, PyObject *code, int lasti, uint64_t parent)
{
    if (code == NULL)
        return;
    PyCodeObject *co = (PyCodeObject *)code;
    out_str(o, "created by ");
    out_text(o, co->co_qualname);
    out_str(o, " at ");
    out_text(o, co->co_filename);
    out_char(o, ':');
    out_int(o, PyCode_Addr2Line(co, lasti));
    if (parent != 0) {
        out_str(o, " in goroutine ");
        out_int(o, (int64_t)parent);
    }
    out_char(o, '\n');
}

/* ---- goroutines ---- */

static void
dump_goroutine(Out *o, PyG *pg)
{
    const char *status = py_status_name(&pg->g);
    if (status == NULL || pg->ts == NULL || pg->system)
        return;
    out_char(o, '\n');
    out_head(o, pg->g.goid, status, minutes_waited(&pg->g));
    if (!py_has_frames(pg) || out_frames(o, pg->ts) == 0)
        out_function(o, pg->fn);
    out_created(o, pg->created_code, pg->created_lasti, pg->g.parentid);
}

static void
dump_start(Start *st, void *o)
{
    PyStart *sp = (PyStart *)st;
    out_char(o, '\n');
    out_head(o, st->goid, "runnable", 0);
    out_function(o, sp->fn);
    out_created(o, sp->code, sp->lasti, st->parentid);
}

static bool
is_adopted(PyThreadState *ts)
{
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink)
        if (mp->thread_g != NULL && mp->set == SCHED && ((PyG *)mp->thread_g)->ts == ts)
            return true;
    return py_main != NULL && py_main->ts == ts;
}

static void
dump_all(bool gil)
{
    Out o = {.fd = STDERR_FILENO};
    out_str(&o, "SIGQUIT: quit\n");
    if (!gil)
        out_str(&o, "A call holds the GIL and does not give it back; the stacks are read without it.\n");
    if (py_main != NULL)
        dump_goroutine(&o, py_main);
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink) {
        PyG *pg = (PyG *)mp->thread_g;
        if (!atomic_load(&mp->dead) && pg != NULL && pg != py_main && mp->set == SCHED)
            dump_goroutine(&o, pg);
    }
    const Class *cls = SCHED->cls;
    size_t n = stack_count(cls->stack);
    for (size_t i = 0; i < n; i++) {
        PyG *pg = (PyG *)slot_g(cls, stack_at(cls->stack, i));
        if (pg->g.cls == cls && pg->handle != NULL && pg != py_main)
            dump_goroutine(&o, pg);
    }
    each_start(SCHED, dump_start, &o);
    for (PyThreadState *ts = gil ? tstate_next_thread(NULL) : NULL; ts != NULL; ts = tstate_next_thread(ts)) {
        if (is_adopted(ts))
            continue;
        out_str(&o, "\nthread 0x");
        out_hex(&o, tstate_ident(ts), 16);
        out_str(&o, " [no goroutine]:\n");
        out_frames(&o, ts);
    }
    out_flush(&o);
}

void
py_dump_faulting(void)
{
    M *mp = getm();
    PyG *pg = mp != NULL && mp->set == SCHED ? (PyG *)mp->curg : NULL;
    if (pg == NULL || pg->ts == NULL || stack_count(STACK_PYTHON) < FAULTHANDLER_SHOWS)
        return;
    Out o = {.fd = STDERR_FILENO};
    out_str(&o, "A fault in");
    dump_goroutine(&o, pg);
    out_char(&o, '\n');
    out_flush(&o);
}

static GMP_NORETURN void
quit(bool gil)
{
    static uint32_t taken;
    if (!atomic_cas(&taken, 0u, 1u))
        for (;;)
            pause(); /* somebody else is at it, and will end the process */
    if (!gil)
        atomic_store(&py_quitting, true);
    dump_all(gil);
    _exit(EXIT_QUIT);
}

/* ---- the signal ---- */

static void
quit_with_gil(void *unused)
{
    (void)unused;
    (void)PyGILState_Ensure();
    quit(true);
}

static void
quit_from_sysmon(void)
{
    static Note never;
    if (sys_thread_start(quit_with_gil, NULL, "gmp-quit", false) == GMP_OK)
        note_sleep(&never, GIL_WAIT_NS);
    quit(false);
}

static void
on_quit(int sig)
{
    (void)sig;
    int saved = errno;
    if (!sysmon_call(quit_from_sysmon))
        quit(false);
    errno = saved;
}

void
py_install_quit(void)
{
    struct sigaction now, ours = {.sa_handler = on_quit, .sa_flags = SA_RESTART | SA_ONSTACK};
    if (!debugvars.sigquit || sigaction(SIGQUIT, NULL, &now) != 0 || (now.sa_flags & SA_SIGINFO) != 0 ||
        now.sa_handler != SIG_DFL)
        return;
    sigfillset(&ours.sa_mask);
    sigaction(SIGQUIT, &ours, NULL);
}

void
py_uninstall_quit(void)
{
    struct sigaction now;
    if (sigaction(SIGQUIT, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == on_quit)
        signal(SIGQUIT, SIG_DFL);
}
