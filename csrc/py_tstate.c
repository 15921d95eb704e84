/* py_tstate.c: the only file that touches private fields of CPython: PyThreadState and, for two words, _PyRuntime.
 *
 * The layout of both changes between versions and now and then within one.  Everything here is compiled against the headers
 * in use, and tstate_init checks on the live thread state that they describe the interpreter that runs.
 *
 * Facts relied upon, per version:
 *   3.11  PyThreadState_Swap neither drops the GIL nor tells PyGILState_*: its TSS key is set on every switch.
 *   3.12+ PyThreadState_Swap drops and takes the GIL, and binds the key itself, unless ts->_status.bound_gilstate says that
 *         it is bound.  That flag is about the thread ts ran on last, so it is corrected when ts has moved.
 *         swap_keeping_gil does the same without the GIL's part, where CPython's pointer was found (py_current.c).
 *   3.11  C and Python calls share one recursion counter; 3.12, 3.13 count C calls alone; 3.14+ look at the stack pointer.
 *   All   a frame chunk whose first slot is skipped is never popped, so the first chunk may lie inside our own page.
 * Thread states are kept for ever (with their goroutines): 3.12+ writes to the one that a thread's key named last.
 */
#define Py_BUILD_CORE 1
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "internal/pycore_runtime.h"
#include "internal/pycore_ceval.h"
#include "internal/pycore_interp.h"
#include "internal/pycore_pystate.h"
#if PY_VERSION_HEX < 0x030C0000
#include "internal/pycore_frame.h"
#elif PY_VERSION_HEX < 0x030E0000
#include "internal/pycore_frame.h"
#else
#include "internal/pycore_interpframe_structs.h"
#endif

#include "py_gmp.h"

#ifdef Py_GIL_DISABLED
#error "gmp needs a CPython with the GIL"
#endif

static PyInterpreterState *interp;
static PyThreadState *main_ts; /* of the main thread */
static unsigned long main_ident;

/* ---- recursion ---- */

#if PY_VERSION_HEX < 0x030C0000
#define REMAINING(ts) ((ts)->recursion_remaining)
#define LIMIT(ts) ((ts)->recursion_limit)
#else
#define REMAINING(ts) ((ts)->py_recursion_remaining)
#define LIMIT(ts) ((ts)->py_recursion_limit)
#endif

/* C calls that fit a goroutine's stack at the most that one of them was seen to take: see tests/crash/test_recursion.py. */
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030E0000
#ifdef Py_DEBUG
#define C_LIMIT 150
#else
#define C_LIMIT 400
#endif
#endif

static void
set_recursion_limits(PyThreadState *ts)
{
#if PY_VERSION_HEX < 0x030C0000
    ts->recursion_limit = interp->ceval.recursion_limit;
    ts->recursion_remaining = ts->recursion_limit;
#else
    ts->py_recursion_remaining = ts->py_recursion_limit;
#if PY_VERSION_HEX < 0x030E0000
    ts->c_recursion_remaining = C_LIMIT;
#endif
#endif
    ts->recursion_headroom = 0;
}

/* ---- the first frame chunk ---- */

static _PyStackChunk *
root_chunk(PyG *pg)
{
    return (_PyStackChunk *)((char *)pg + SCHED->cls->g_size);
}

static void
install_root_chunk(PyG *pg)
{
    _PyStackChunk *chunk = root_chunk(pg);
    chunk->previous = NULL;
    /* malg has not set stack_lo yet; slots are aligned to their size, a power of two. */
    char *top = (char *)(((uintptr_t)pg | (stack_class_size(STACK_PYTHON) - 1)) + 1);
    chunk->size = (size_t)(top - (char *)chunk);
    chunk->top = 0;
    pg->ts->datastack_chunk = chunk;
    pg->ts->datastack_top = &chunk->data[1]; /* the first slot is skipped: a frame there would pop the chunk */
    pg->ts->datastack_limit = (PyObject **)top;
}

int
tstate_new(PyG *pg)
{
    PyThreadState *ts = PyThreadState_New(interp);
    if (ts == NULL)
        return GMP_ENOMEM;
    pg->ts = ts;
    /* No thread's: else PyThreadState_SetAsyncExc and sys._current_frames, asked about a thread, would hit a goroutine, perhaps
     * a dead one, that was there once. */
    ts->thread_id = (unsigned long)(uintptr_t)pg;
    install_root_chunk(pg);
#if PY_VERSION_HEX >= 0x030E0000
    char *hi = (char *)pg;
    char *lo = (char *)((uintptr_t)pg & ~(stack_class_size(STACK_PYTHON) - 1)) + stack_guard_size(STACK_PYTHON);
    if (PyUnstable_ThreadState_SetStackProtection(ts, lo, (size_t)(hi - lo)) < 0) {
        PyErr_Clear();
        ts->datastack_chunk = NULL; /* not CPython's to free */
        ts->datastack_top = ts->datastack_limit = NULL;
        PyThreadState_Clear(ts);
        PyThreadState_Delete(ts);
        pg->ts = NULL;
        return GMP_ENOMEM;
    }
#endif
    return GMP_OK;
}

/* ---- the GIL ---- */

#if PY_VERSION_HEX < 0x030C0000
#define GIL (&_PyRuntime.ceval.gil)
#else
#define GIL (interp->ceval.gil)
#endif
#define GIL_LOCKED (*(int *)&GIL->locked)
#define GIL_SLICE_NS (500 * 1000)

static PyThreadState *gil_waiter; /* atomic: it waits in tstate_attach; set and cleared by its thread */

/* An M that is about to run goroutines waits for the GIL, and whoever holds it is a plain thread or a goroutine that lost its
 * P.  There may be many of those, and by CPython's rules each would keep it for the switch interval, 5 ms, before it is our
 * turn.  So they are asked every GIL_SLICE_NS.  sysmon; true when somebody waits. */
bool
tstate_hurry(int64_t now)
{
    static int64_t asked;
    PyThreadState *waiter = atomic_load(&gil_waiter);
    if (waiter == NULL || py_stopped) {
        asked = 0;
        return false;
    }
    if (asked == 0)
        asked = now;
    if (now - asked < GIL_SLICE_NS)
        return true;
    asked = now;
    /* What take_gil() of CPython does when the interval is over.  Whoever is asked stops until another thread has the GIL, so
     * one must really want it: under the mutex, the waiter has not had it yet when it is not the last holder. */
    pthread_mutex_lock(&GIL->mutex);
    PyThreadState *holder = (PyThreadState *)atomic_load_relaxed((uintptr_t *)&GIL->last_holder);
    if (atomic_load_relaxed(&GIL_LOCKED) > 0 && holder != waiter && atomic_load(&gil_waiter) == waiter) {
#if PY_VERSION_HEX < 0x030D0000
        atomic_store_relaxed((int *)&interp->ceval.gil_drop_request, 1);
        atomic_store_relaxed((int *)&interp->ceval.eval_breaker, 1);
#else
        if (holder != NULL)
            atomic_or(&holder->eval_breaker, (uintptr_t)1); /* _PY_GIL_DROP_REQUEST_BIT */
#endif
    }
    pthread_mutex_unlock(&GIL->mutex);
    return true;
}

/* Takes the GIL as ts.  Not by PyThreadState_Swap: 3.12's uses ts before it has the GIL, when the interpreter that is finalised
 * may have freed it. */
static inline void
gil_take(PyThreadState *ts)
{
    bool listed = atomic_load_relaxed(&GIL_LOCKED) > 0 && atomic_cas(&gil_waiter, (PyThreadState *)NULL, ts);
    PyEval_RestoreThread(ts);
    if (GMP_UNLIKELY(listed))
        atomic_store(&gil_waiter, (PyThreadState *)NULL);
}

/* ---- switching ---- */

#if PY_VERSION_HEX >= 0x030F0000
/* PyGILState_* has a thread-local variable. */
#define BIND_KEY(ts, mp) (*(mp)->tls[1] = (ts))
#else
#if PY_VERSION_HEX < 0x030C0000
#define GILSTATE_KEY _PyRuntime.gilstate.autoTSSkey
#else
#define GILSTATE_KEY _PyRuntime.autoTSSkey
#endif
#define BIND_KEY(ts, mp) PyThread_tss_set(&GILSTATE_KEY, (ts))
#endif

#ifndef Py_DEBUG

/* After an attach: PyGILState_* has to find this thread state.  From 3.12 on CPython has seen to it, unless it believes that
 * it was bound already, on another thread. */
static inline void
bind_here(PyG *to, M *mp)
{
#if PY_VERSION_HEX < 0x030C0000
    BIND_KEY(to->ts, mp);
#else
    if (GMP_LIKELY(PyGILState_GetThisThreadState() == to->ts))
        return;
    to->ts->_status.bound_gilstate = 0;
    gil_take(PyEval_SaveThread()); /* binds it */
#endif
}
#define before_attach(to, mp) ((void)0)

#else

/* Debug builds assert that a thread state is not bound where the key does not name it, and the other way round. */
static inline void
before_attach(PyG *to, M *mp)
{
#if PY_VERSION_HEX >= 0x030C0000
    bool bound = PyGILState_GetThisThreadState() == to->ts;
    atomic_store(&to->bound, bound); /* in this order: see bind_here */
    atomic_store(&to->g.lastm, mp->life);
    to->ts->_status.bound_gilstate = bound;
#endif
    (void)to, (void)mp;
}

/* Binding a thread's key to `to` also clears bound_gilstate of the one that it named before.  When that one has moved since
 * and is bound where it is now, this is wrong; harmless, but for an assertion.  After an attach, with the GIL. */
static inline void
bind_here(PyG *to, M *mp)
{
#if PY_VERSION_HEX < 0x030C0000
    BIND_KEY(to->ts, mp);
#else
    static __thread PyG *last;
    to->bound = true;
    if (last != NULL && last != to && last->ts != NULL) {
        if (atomic_load(&last->g.lastm) != mp->life)
            last->ts->_status.bound_gilstate = atomic_load(&last->bound);
        else
            last->bound = false;
    }
    last = to->g.stack_lo != NULL || to == py_main ? to : NULL; /* another adopted thread's stand-in may be freed */
#endif
    (void)mp;
}

#endif

/* The switch from one thread state to another as PyThreadState_Swap does it, but for the GIL, which stays with this thread.
 * False when somebody has asked for the GIL, or something else is to be done that CPython does as it takes it. */
static inline bool
swap_keeping_gil(PyThreadState *from, PyThreadState *to, M *mp)
{
#if PY_VERSION_HEX < 0x030C0000
    PyThreadState_Swap(to); /* does just this */
    BIND_KEY(to, mp);
    return true;
#elif defined(Py_DEBUG)
    return false;
#else
    void **current = mp->tls[0];
    if (GMP_UNLIKELY(current == NULL || *current != from))
        return false;
#if PY_VERSION_HEX < 0x030D0000
    if (GMP_UNLIKELY(atomic_load_relaxed((int *)&interp->ceval.gil_drop_request._value) != 0 || to->async_exc != NULL))
        return false;
    atomic_store_relaxed((uintptr_t *)&interp->ceval.gil->last_holder._value, (uintptr_t)to);
#else
    uintptr_t asked = atomic_load_relaxed(&from->eval_breaker), next = atomic_load_relaxed(&to->eval_breaker);
    uintptr_t version = atomic_load_relaxed(&interp->ceval.instrumentation_version); /* tracing has begun or ended */
    if (GMP_UNLIKELY(((asked | next) & _PY_GIL_DROP_REQUEST_BIT) != 0 ||
                     ((next ^ version) & ~(uintptr_t)_PY_EVAL_EVENTS_MASK) != 0 ||
                     atomic_load_relaxed(&interp->ceval.pending.npending) != 0))
        return false;
    atomic_store_relaxed(&interp->ceval.gil->last_holder, to); /* whom the next one will ask for the GIL */
    atomic_store_relaxed(&from->state, _Py_THREAD_DETACHED);
    atomic_store_relaxed(&to->state, _Py_THREAD_ATTACHED);
#if PY_VERSION_HEX < 0x030E0000
    from->_status.holds_gil = 0;
    to->_status.holds_gil = 1;
#else
    from->holds_gil = 0;
    to->holds_gil = 1;
#endif
#endif
    from->_status.active = 0;
    from->_status.bound_gilstate = 0;
    to->_status.active = 1;
    to->_status.bound_gilstate = 1;
    *current = to;
    BIND_KEY(to, mp);
    return true;
#endif
}

/* CPython runs signal handlers in "the main thread": that is the one, if any, that runs the main goroutine now. */
static inline void
set_signal_duty(bool on)
{
    _PyRuntime.main_thread = on ? PyThread_get_thread_ident() : 0;
    if (on && main_ts != NULL)
        main_ts->thread_id = _PyRuntime.main_thread; /* finalization expects it, wherever it happens */
}

void
tstate_swap(PyG *from, PyG *to, M *mp)
{
    if (GMP_UNLIKELY(from == py_main))
        set_signal_duty(false);
    if (GMP_UNLIKELY(to == py_main))
        set_signal_duty(true);
    if (GMP_UNLIKELY(!swap_keeping_gil(from->ts, to->ts, mp))) {
        before_attach(to, mp);
        (void)PyEval_SaveThread();
        gil_take(to->ts);
        bind_here(to, mp);
    }
#if PY_VERSION_HEX < 0x030D0000
    /* A signal that came while another goroutine ran here: the eval loop was not told, as that one does not handle it. */
    if (GMP_UNLIKELY(to == py_main) && tstate_signal_pending())
        atomic_store_relaxed((int *)&interp->ceval.eval_breaker, 1);
#endif
}

/* On g0, without the GIL; waits for it. */
void
tstate_attach(PyG *to, M *mp)
{
    if (to == py_main)
        set_signal_duty(true);
    before_attach(to, mp);
    gil_take(to->ts);
    if (GMP_UNLIKELY(mp->tls[0] == NULL))
        current_find(mp, to->ts);
    bind_here(to, mp);
}

void
tstate_detach(PyG *from)
{
    if (from == py_main)
        set_signal_duty(false);
    PyEval_SaveThread();
}

/* sysmon, without the GIL: the thread state of a goroutine lives for ever, that of the main thread as long as the runtime.
 * Another thread's may be freed at any time, so it is not looked at: such a thread counts as detached. */
bool
tstate_detached(PyG *pg)
{
    PyThreadState *ts = pg->ts;
    if (pg->g.stack_lo == NULL && pg != py_main)
        return true;
#if PY_VERSION_HEX < 0x030C0000
    return _PyThreadState_UncheckedGet() != ts;
#elif PY_VERSION_HEX < 0x030D0000
    return !((volatile PyThreadState *)ts)->_status.active;
#else
    return atomic_load_relaxed(&ts->state) == 0; /* _Py_THREAD_DETACHED */
#endif
}

bool
tstate_signal_pending(void)
{
    if (main_ts == NULL)
        return false;
#if PY_VERSION_HEX < 0x030D0000
    return atomic_load_relaxed((int *)&_PyRuntime.ceval.signals_pending) != 0;
#else
    return (atomic_load_relaxed(&main_ts->eval_breaker) & 2) != 0; /* _PY_SIGNALS_PENDING_BIT */
#endif
}

void
tstate_forbid(void *poison)
{
#if PY_VERSION_HEX >= 0x030F0000
    void **word = current_word(1);
    if (word != NULL)
        *word = poison;
#else
    PyThread_tss_set(&GILSTATE_KEY, poison);
#endif
}

uint32_t *
tstate_signal_word(void)
{
    if (main_ts == NULL)
        return NULL;
#if PY_VERSION_HEX < 0x030D0000
    return (uint32_t *)&_PyRuntime.ceval.signals_pending;
#else
    return (uint32_t *)&main_ts->eval_breaker; /* its low half: all supported CPUs are little-endian */
#endif
}

/* ---- the life of a goroutine ---- */

void
tstate_prefetch(PyG *pg)
{
    char *ts = (char *)pg->ts;
    __builtin_prefetch(ts, 1);
    __builtin_prefetch(ts + offsetof(PyThreadState, c_profilefunc), 1);
    __builtin_prefetch(ts + offsetof(PyThreadState, exc_info), 1);
    __builtin_prefetch(ts + offsetof(PyThreadState, context), 1);
    __builtin_prefetch(ts + offsetof(PyThreadState, datastack_limit), 1);
    __builtin_prefetch(ts + offsetof(PyThreadState, exc_state), 1);
    __builtin_prefetch(root_chunk(pg), 1);
}

void
tstate_begin(PyG *pg)
{
    PyThreadState *ts = pg->ts;
    set_recursion_limits(ts);
    if (pg->context != NULL) {
        ts->context = pg->context;
        pg->context = NULL;
    }
    ts->context_ver++; /* ContextVar caches by thread state and version; this thread state had other lives */
}

int
tstate_context(PyObject **copy)
{
    *copy = NULL;
    if (PyThreadState_Get()->context == NULL)
        return 0;
    *copy = PyContext_CopyCurrent();
    return *copy == NULL ? -1 : 0;
}

bool
tstate_is_main_thread(void)
{
    return PyThread_get_thread_ident() == main_ident;
}

bool
tstate_in_callback(PyG *pg)
{
    return pg->ts->gilstate_counter > 1 && PY_MAY_MOVE(&pg->g);
}

/* Attached as the goroutine that ends, on its stack. */
void
tstate_scrub(void)
{
    PyThreadState *ts = PyThreadState_Get();
    for (int round = 0; round < 4; round++) { /* destructors may bring some of it back */
        bool clean = true;
        if (ts->c_tracefunc != NULL) {
            PyEval_SetTrace(NULL, NULL);
            clean = false;
        }
        if (ts->c_profilefunc != NULL) {
            PyEval_SetProfile(NULL, NULL);
            clean = false;
        }
#define CLEAR(field)                                                                                                   \
    if (ts->field != NULL) {                                                                                           \
        Py_CLEAR(ts->field);                                                                                           \
        clean = false;                                                                                                 \
    }
        CLEAR(context)
        CLEAR(dict)
#if PY_VERSION_HEX >= 0x030D0000
        CLEAR(threading_local_key)
        CLEAR(threading_local_sentinel)
#endif
        CLEAR(async_exc)
        CLEAR(async_gen_firstiter)
        CLEAR(async_gen_finalizer)
        CLEAR(exc_state.exc_value)
#undef CLEAR
        if (PyErr_Occurred()) {
            PyErr_Clear();
            clean = false;
        }
        if (clean)
            break;
    }
    ts->exc_info = &ts->exc_state;
    ts->coroutine_origin_tracking_depth = 0;
    ts->tracing = 0;
    ts->context_ver++;
    GMP_ASSERT(ts->datastack_top >= &ts->datastack_chunk->data[0]);
}

void
tstate_where(PyObject **code, int *lasti)
{
    PyThreadState *ts = PyThreadState_Get();
    *code = NULL;
    *lasti = -1;
#if PY_VERSION_HEX < 0x030C0000
    struct _PyInterpreterFrame *frame = ts->cframe->current_frame;
    if (frame != NULL) {
        *code = Py_NewRef((PyObject *)frame->f_code);
        *lasti = _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT);
    }
#else
#if PY_VERSION_HEX < 0x030D0000
    struct _PyInterpreterFrame *frame = ts->cframe->current_frame;
#else
    struct _PyInterpreterFrame *frame = ts->current_frame;
#endif
    if (frame == NULL)
        return;
    PyObject *o = PyUnstable_InterpreterFrame_GetCode(frame);
    if (o != NULL && PyCode_Check(o)) {
        *code = o;
        *lasti = PyUnstable_InterpreterFrame_GetLasti(frame);
    }
    else {
        Py_XDECREF(o);
    }
#endif
}

/* ---- stacks ---- */

#if PY_VERSION_HEX < 0x030D0000
#define TOP_FRAME(ts) ((ts)->cframe != NULL ? (ts)->cframe->current_frame : NULL)
#else
#define TOP_FRAME(ts) ((ts)->current_frame)
#endif
#define OWNED_BY_C 3 /* FRAME_OWNED_BY_CSTACK from 3.12 on, FRAME_OWNED_BY_INTERPRETER from 3.14 on: no Python code */

int
tstate_frames(PyThreadState *ts, PyPlace *out, int max, int *more)
{
    int n = 0;
    *more = 0;
    for (struct _PyInterpreterFrame *frame = TOP_FRAME(ts); frame != NULL; frame = frame->previous) {
        if (frame->owner >= OWNED_BY_C)
            continue;
        if (n == max) {
            ++*more;
            continue;
        }
#if PY_VERSION_HEX < 0x030C0000
        PyObject *code = (PyObject *)frame->f_code;
        int lasti = _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT);
#else
        PyObject *code = PyUnstable_InterpreterFrame_GetCode(frame);
        int lasti = PyUnstable_InterpreterFrame_GetLasti(frame);
        Py_XDECREF(code); /* the frame has a reference, too */
#endif
        if (code != NULL && PyCode_Check(code))
            out[n++] = (PyPlace){(PyCodeObject *)code, lasti};
    }
    return n;
}

PyThreadState *
tstate_next_thread(PyThreadState *after)
{
    PyThreadState *ts = after == NULL ? PyInterpreterState_ThreadHead(interp) : PyThreadState_Next(after);
    PyThreadState *self = PyThreadState_Get();
    /* A goroutine's thread id is its own address: see tstate_new. */
    while (ts != NULL && (ts == self || stack_find((void *)(uintptr_t)ts->thread_id, NULL, NULL, NULL)))
        ts = PyThreadState_Next(ts);
    return ts;
}

unsigned long
tstate_ident(PyThreadState *ts)
{
    return ts->thread_id;
}

/* ---- start and end ---- */

static int
refuse(const char *what)
{
    PyErr_Format(
        PyExc_ImportError,
        "gmp was built for Python %d.%d.%d and does not fit the running Python %.20s (%s); build it for this one: "
        "pip install --no-binary gmp-runtime --force-reinstall gmp-runtime",
        PY_MAJOR_VERSION, PY_MINOR_VERSION, PY_MICRO_VERSION, Py_GetVersion(), what);
    return -1;
}

int
tstate_init(void)
{
    if ((Py_Version >> 16) != (PY_VERSION_HEX >> 16))
        return refuse("another minor version");
    PyThreadState *ts = PyThreadState_Get();
    interp = PyInterpreterState_Get();
    if (interp != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError,
                        "gmp serves the main interpreter only: import it there, not in a sub-interpreter");
        return -1;
    }
    /* Each private field that this file uses must show what the public functions say. */
    bool had_context = ts->context != NULL;
    PyObject *ctx = PyContext_CopyCurrent(); /* makes sure that there is a context */
    PyObject *dict = PyThreadState_GetDict();
    if (ctx == NULL || dict == NULL)
        return -1;
    Py_DECREF(ctx);
    uint64_t id = PyThreadState_GetID(ts);
    _PyStackChunk *chunk = ts->datastack_chunk;
    bool ok = ts->interp == interp && ts->id == id && ts->dict == dict && ts->context != NULL &&
              Py_IS_TYPE(ts->context, &PyContext_Type) && ts->exc_info != NULL && LIMIT(ts) == Py_GetRecursionLimit() &&
              REMAINING(ts) <= LIMIT(ts) && REMAINING(ts) > 0 && ts->async_exc == NULL && ts->tracing == 0;
    if (ok && chunk != NULL)
        ok = (char *)ts->datastack_limit == (char *)chunk + chunk->size && ts->datastack_top >= &chunk->data[0] &&
             ts->datastack_top <= ts->datastack_limit;
    if (ok) {
        _PyErr_StackItem *last = ts->exc_info;
        while (last->previous_item != NULL)
            last = last->previous_item;
        ok = last == &ts->exc_state;
    }
    if (!ok)
        return refuse("the layout of PyThreadState differs");
    if (!had_context) { /* go() copies the caller's context if there is one: do not make one for every program */
        Py_CLEAR(ts->context);
        ts->context_ver++;
    }
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *main_thread = threading != NULL ? PyObject_CallMethod(threading, "main_thread", NULL) : NULL;
    PyObject *ident = main_thread != NULL ? PyObject_GetAttrString(main_thread, "ident") : NULL;
    Py_XDECREF(threading);
    Py_XDECREF(main_thread);
    if (ident == NULL)
        return -1;
    main_ident = PyLong_AsUnsignedLong(ident);
    Py_DECREF(ident);
    if (main_ident == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    if (_PyRuntime.main_thread != main_ident)
        return refuse("the layout of _PyRuntime differs");
#if PY_VERSION_HEX < 0x030C0000
    if (PyThread_tss_get(&_PyRuntime.gilstate.autoTSSkey) != ts || _PyThreadState_UncheckedGet() != ts)
        return refuse("the layout of _PyRuntime differs");
#endif
    PyObject *interval = PyObject_CallNoArgs(PySys_GetObject("getswitchinterval"));
    double us = interval != NULL ? PyFloat_AsDouble(interval) * 1e6 : -1;
    Py_XDECREF(interval);
    if (PyErr_Occurred())
        return -1;
    if (us - (double)GIL->interval > 1 || (double)GIL->interval - us > 1 || GIL_LOCKED != 1)
        return refuse("the layout of the GIL differs");
    for (PyThreadState *t = PyInterpreterState_ThreadHead(interp); t != NULL; t = PyThreadState_Next(t))
        if (t->thread_id == main_ident)
            main_ts = t;
    current_init();
    return 0;
}

static PyG *
pyg_at(size_t i)
{
    const Class *cls = SCHED->cls;
    PyG *pg = (PyG *)slot_g(cls, stack_at(cls->stack, i));
    return pg->g.cls == cls && pg->ts != NULL ? pg : NULL;
}

void
tstate_forget(void)
{
    main_ts = NULL;
    PyThreadState *self = PyThreadState_Get();
    size_t n = stack_count(SCHED->cls->stack);
    for (size_t i = 0; i < n; i++) {
        PyG *pg = pyg_at(i);
        if (pg == NULL || pg->ts == self)
            continue;
        pg->ts->datastack_chunk = NULL;
        pg->ts->datastack_top = pg->ts->datastack_limit = NULL;
    }
}

#if PY_VERSION_HEX < 0x030E0000
static uint32_t halted; /* atomic */

/* A trace function: the thread that the main goroutine has left stops here for good, without the GIL. */
static int
halt_here(PyObject *obj, PyFrameObject *frame, int what, PyObject *arg)
{
    (void)obj, (void)frame, (void)what, (void)arg;
    if (getm() != SCHED->mainm)
        return 0;
    atomic_store(&halted, 1u);
    (void)PyEval_SaveThread();
    for (;;)
        sys_usleep(1000 * 1000);
}

/* Stops the goroutine that keeps the main thread, if it runs Python code.  Lets go of the GIL meanwhile. */
bool
tstate_halt_main_thread(void)
{
#if PY_VERSION_HEX < 0x030C0000
    PyG *pg = (PyG *)atomic_load(&SCHED->mainm->curg);
    if (pg == NULL || pg->ts == NULL || _PyEval_SetTrace(pg->ts, halt_here, NULL) < 0)
        return false;
#else
    PyEval_SetTraceAllThreads(halt_here, NULL);
#endif
    PyThreadState *ts = PyEval_SaveThread();
    for (int i = 0; i < 50 && !atomic_load(&halted); i++)
        sys_usleep(1000);
    PyEval_RestoreThread(ts);
#if PY_VERSION_HEX >= 0x030C0000
    PyEval_SetTraceAllThreads(NULL, NULL);
#endif
    return atomic_load(&halted) != 0;
}
#endif

/* os.fork relies on the id of the thread state that forks. */
void
tstate_fork_id(bool before)
{
    M *mp = getm();
    if (mp != NULL && mp->curg->stack_lo != NULL)
        PyThreadState_Get()->thread_id = before ? PyThread_get_thread_ident() : (unsigned long)(uintptr_t)mp->curg;
}

/* CPython has deleted all thread states but the forking one's, first chunks included as far as munmap let it. */
void
tstate_afterfork_child(PyG *self)
{
    size_t n = stack_count(SCHED->cls->stack);
    for (size_t i = 0; i < n; i++) {
        PyG *pg = pyg_at(i);
        if (pg == NULL || pg == self)
            continue;
        pg->ts = NULL;
        pg->handle = NULL;
        pg->g.status = G_IDLE;
    }
    gil_waiter = NULL;
    main_ts = PyThreadState_Get();
    main_ident = PyThread_get_thread_ident();
    set_signal_duty(true);
}
