/* py_gmp.h: the CPython glue: a python goroutine is a G and a PyThreadState.
 *
 *   py_tstate.c     the only file that touches private fields of CPython
 *   py_current.c    where CPython keeps the current thread state of a thread
 *   py_goroutine.c  go, Goroutine, gosched, sleep, threads that become Ms, the python Class
 *   py_wait.c       timeouts, and what every wait does when it ends otherwise: errors, signals, deadlock
 *   py_greenlet.c   goroutines that must stay on their thread: greenlets, callbacks from C, imports
 *   py_chan.c       Chan, recv, send, select        py_sync.c   Mutex, WaitGroup        py_net.c   FD
 *   py_native.c     C functions as goroutines of the native set
 *   py_runtime.c    statistics, listing goroutines  py_dump.c   the same for SIGQUIT, without Python code
 *   py_time.c       the timers of gmp.time          py_module.c the module
 *   py_grpc*.c      the gRPC server and its calls   py_tls.c its credentials
 *
 * All of it runs with the GIL, but for the hooks of the Class (Class.resume, detached, idle): each says so.
 */
#ifndef PY_GMP_H
#define PY_GMP_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>

#include "chan.h"
#include "sync.h"

typedef struct Goroutine Goroutine;

#define PYG_ARGS 5 /* arguments kept in the G itself; more go to a tuple */

/* A python goroutine, at the top of its slot; or the stand-in of an adopted thread (g.stack_lo == NULL). */
typedef struct PyG {
    G g;                    /* first */
    PyThreadState *ts;      /* its own for ever; an adopted thread's: current at its last scheduling point */
    Goroutine *handle;      /* owned while it runs */
    PyObject *fn;           /* owned while it runs, as are the arguments */
    PyObject *context;      /* moved to ts when it starts */
    PyObject *created_code; /* where go() was called */
    int created_lasti;
    int16_t nargs;                /* in args: positional ones and values of keywords */
    bool lock;                    /* go(..., lock_os_thread=True) */
    bool system;                  /* of the runtime's own: not counted, not shown */
    WaitQ joiners;                /* GIL */
    PyObject *argtuple;           /* all arguments, when there are more than PYG_ARGS */
    PyObject *kwnames;            /* names of the last of the arguments */
    PyObject *args[PYG_ARGS + 1]; /* [0] is left free for PY_VECTORCALL_ARGUMENTS_OFFSET */
#ifdef Py_DEBUG
    bool bound; /* bound_gilstate as it should be: see bound_here */
#endif
} PyG;

/* Bytes above the G for Python frames: the first KiB shares the G's page, the rest, as much as a thread's first chunk has, is
 * touched only by deep calls.  A small chunk alone would not do: each call that does not fit maps and unmaps another one. */
#define PY_FRAMES_SIZE (1024 + 16 * 1024)

#define SCHED (&scheds[SET_PYTHON])

/* ---- py_tstate.c ---- */
int tstate_init(void);   /* checks that this interpreter is the one that was compiled for; ImportError */
int tstate_new(PyG *pg); /* pg->ts and its first frame chunk; GMP_E... */
/* from's C stack is saved, this thread is to go on as `to`. */
void tstate_swap(PyG *from, PyG *to, M *mp);
void tstate_attach(PyG *to, M *mp);  /* takes the GIL */
void tstate_detach(PyG *from);       /* lets go of the GIL */
bool tstate_detached(PyG *pg);       /* any thread, no GIL */
bool tstate_hurry(int64_t now);      /* sysmon, no GIL: see that who waits in tstate_attach gets the GIL soon */
void tstate_prefetch(PyG *pg);       /* it will be attached soon */
void tstate_begin(PyG *pg);          /* the goroutine's first act: context, recursion limits */
int tstate_context(PyObject **copy); /* of the current context; NULL when there is none */
bool tstate_is_main_thread(void);
bool tstate_in_callback(PyG *pg);   /* inside PyGILState_Ensure, on a thread that others may use while it waits */
void tstate_scrub(void);            /* its last: nothing of it may be visible to the next one; may run Python code */
bool tstate_signal_pending(void);   /* any thread, no GIL: a signal waits for the main goroutine */
uint32_t *tstate_signal_word(void); /* where CPython's signal handler leaves word; NULL at the end */
void tstate_where(PyObject **code, int *lasti); /* of the innermost Python frame; code is a new reference or NULL */
void tstate_forbid(void *poison);               /* PyGILState_* will find this on the calling thread */
/* The innermost Python frames of ts, innermost first, at most max; *more: how many there are besides.  The code objects are
 * borrowed.  Reads only: with the GIL, or without in a process that is about to end. */
typedef struct PyPlace {
    PyCodeObject *code;
    int lasti;
} PyPlace;
int tstate_frames(PyThreadState *ts, PyPlace *out, int max, int *more);
/* The first (after NULL) or next thread state that is no goroutine's and not the caller's; with the GIL. */
PyThreadState *tstate_next_thread(PyThreadState *after);
unsigned long tstate_ident(PyThreadState *ts); /* threading.get_ident() of its thread */
bool tstate_halt_main_thread(void);            /* up to 3.13 */
void tstate_forget(void); /* before the interpreter is finalised: take back what CPython would free */
void tstate_fork_id(bool before);
void tstate_afterfork_child(PyG *self);

/* ---- py_current.c ---- */
#if PY_VERSION_HEX < 0x030F0000
#define PY_CURRENT_WORDS 1 /* the current thread state */
#else
#define PY_CURRENT_WORDS 2 /* and the one of PyGILState_* */
#endif
void current_init(void);
void **current_word(int i);                  /* of the calling thread; NULL: not known */
void current_find(M *mp, PyThreadState *ts); /* sets mp->tls, on its thread, attached as ts */
bool current_found(void);

/* ---- py_goroutine.c ---- */
/* What a goroutine is started with: in its handle until it runs. */
typedef struct PyStart {
    Start start; /* first; goid is the goroutine's number for ever */
    PyObject *fn, *argtuple, *kwnames, *context, *code;
    int lasti;
    bool lock; /* lock_os_thread=True */
} PyStart;

typedef enum GoroutineState { GR_RUNNING, GR_RETURNED, GR_FAILED } GoroutineState;

struct Goroutine {
    PyObject_HEAD
    union {
        PyG *pg;                 /* once it has begun to run */
        PyObject *result;        /* returned: the value */
        struct Failure *failure; /* raised */
    } u;
    PyObject *name; /* when done, if somebody still held it then */
    PyStart from;
    uint8_t state; /* GoroutineState */
    bool queued;   /* without a G, and it has not begun to run; GIL, as is all of this but u.pg and from.start */
};

typedef struct Failure {
    PyObject *exc;
    PyObject *created; /* str or NULL */
    bool collected;    /* reported, or raised by result() or join() */
    Goroutine *owner;
    struct Failure *next, *prev;
} Failure;

extern PyTypeObject Goroutine_Type;
extern PyG *py_main; /* the main thread's goroutine, once it was adopted */
extern bool py_stopped;
int goroutine_init(PyObject *module);
/* The calling goroutine; a thread of other origin is adopted.  NULL with an exception. */
G *py_self_slow(void);
static inline G *
py_self(void)
{
    M *mp = getm();
    if (GMP_LIKELY(mp != NULL && mp->curg->stack_lo != NULL))
        return mp->curg;
    return py_self_slow();
}
/* go(fn, ...): args[0] is fn.  A new reference to the handle. */
PyObject *py_go(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *py_goroutine_name(PyObject *fn); /* new reference, str */
PyObject *py_goroutine_created(PyG *pg);   /* "pkg.f at file.py:12", or NULL without an exception */
void py_report_failures(void);             /* those that nobody collected, at exit */
void py_stop(void);                        /* the interpreter shuts down */
void py_afterfork_child(void);

/* ---- py_greenlet.c ---- */
/* The calling goroutine is about to leave its thread to others: it locks itself to it if it has greenlets or C frames there.  Before
 * anything is held: it may run Python code.  0, or -1 with an exception. */
int py_greenlet_park(void);
void py_greenlet_end(void); /* the goroutine's last act but goexit */
int greenlet_init(void);
#if PY_VERSION_HEX < 0x030C0000
extern uint64_t py_modules_seen, *py_modules_tag;
#define PY_GREENLETS() GMP_UNLIKELY(*py_modules_tag != py_modules_seen)
#else
extern bool py_modules_changed;
#define PY_GREENLETS() GMP_UNLIKELY(py_modules_changed)
#endif
/* PY_GREENLETS: true only if greenlet may be imported.  PY_MUST_LOOK: py_greenlet_park or _end must be called. */
#define PY_MAY_MOVE(gp) ((gp)->stack_lo != NULL || (gp) == (G *)py_main)
extern PyObject *py_module_locks;
#define PY_MUST_LOOK(gp)                                                                                               \
    (PY_GREENLETS() || PyDict_GET_SIZE(py_module_locks) != 0 ||                                                        \
     GMP_UNLIKELY(tstate_in_callback((PyG *)(gp)) != ((gp)->lockedint != 0)))

/* ---- py_wait.c ---- */
/* None -> -1 (for ever); seconds -> ns.  Negative on error, with an exception naming `what`. */
int py_timeout(PyObject *o, const char *what, int64_t *ns);
int py_seconds(PyObject *o, const char *what, int64_t *ns); /* the same without None */
/* The argument of f(timeout=None): borrowed, None when it was not given; NULL with an exception. */
PyObject *py_timeout_arg(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, const char *what);
typedef struct PyWait {
    int64_t timeout;  /* what is left, ns; negative for ever */
    int64_t deadline; /* 0: not yet known */
    bool looked;      /* for signals, since all were asleep */
} PyWait;
/* Before a call that may park.  Adopts the thread.  0, or -1 with an exception. */
int py_wait_begin(PyWait *w);
/* A wait came back with code < 0.  1: not its own doing (a signal was handled), wait again; 0: the caller's to report. */
int py_wait_again(PyWait *w, int code);
/* Sets the exception for a code.  what: "Chan.recv()". */
void py_raise_code(int code, const char *what, PyWait *w);
int wait_init(PyObject *module);
int64_t py_idle(Sched *sched);
extern uint32_t py_served; /* servers whose calls come from outside; while there is one there is no deadlock */

/* ---- py_sync.c ---- */
PyObject *py_waitgroup_wait(Gwaitgroup *wg, PyObject *timeout, const char *what);

/* ---- py_native.c ---- */
void native_fault(const void *addr); /* ends the process with a message when a native goroutine is to blame */
int native_module_init(PyObject *module);
extern PyMethodDef native_methods[];
/* ---- py_runtime.c, py_dump.c ---- */
const char *py_status_name(G *gp); /* as a stack shows it; NULL: there is no such goroutine */
bool py_has_frames(PyG *pg);       /* its thread state exists for sure */
extern bool py_quitting;           /* a fault does not matter any more */
/* A fault of the caller's: prints its goroutine's stack if faulthandler has too many to choose from. */
void py_dump_faulting(void);
void py_install_quit(void);
void py_uninstall_quit(void);

/* ---- py_chan.c, py_time.c ---- */
typedef struct PyChan {
    PyObject_HEAD
    Hchan *c;
    PyObject *weakrefs;
    Hchan own;               /* Chan's; a native.Chan has a gmp_chan of the C interface, which C code may hold on to */
    struct gmp_chan *native; /* NULL: a Chan */
    struct ChanTimer *timer; /* sends the time to it; owned */
} PyChan;
extern PyTypeObject Chan_Type;
PyObject *py_chan_new(size_t cap);
/* What a timer sends is no object, as it has no GIL: a word with the lowest bit set, the time in it. */
static inline bool
is_time(PyObject *v)
{
    return ((uintptr_t)v & 1) != 0;
}
PyObject *py_time_value(PyObject *v);  /* a float, of such a word */
void py_time_free(struct ChanTimer *); /* NULL is allowed */
void py_time_afterfork_child(void);
int time_module_init(PyObject *module);

/* ---- others ---- */
int chan_module_init(PyObject *module);
int sync_module_init(PyObject *module);
int net_module_init(PyObject *module);
int grpc_module_init(PyObject *module); /* py_grpc.c or py_nogrpc.c */
void grpc_before_fork(void);
void grpc_after_fork(void);      /* in the parent */
void grpc_afterfork_child(void); /* the parent's servers are not the child's */
extern PyMethodDef goroutine_methods[], chan_methods[], runtime_methods[], wait_methods[], time_methods[];
extern PyObject *ChanClosed, *DeadlockError;

#endif
