/* py_goroutine.c: python goroutines: go(), the Goroutine handle, and threads that become Ms.
 *
 * Life of a goroutine
 *   1. go() makes a handle, takes the function, its arguments, a copy of the context and the place of the call, and hands
 *      them to newproc.  Everything that can fail comes before newproc.
 *   2. pyg_entry, on the goroutine's stack and attached to its thread state, calls the function and stores the outcome in
 *      the handle, wakes those who join, reports an exception that nobody can collect any more, scrubs the thread state and
 *      ends.  G, stack and thread state are reused together.
 * A failure is collected by result() or join(), which raise it; reported when it happens and nobody holds the handle;
 * reported when the handle goes; or reported at exit: once, whichever comes first.
 */
#include "py_gmp.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "netpoll.h"

PyG *py_main;
bool py_stopped;
static PyG *py_forked; /* in the child of a fork that a goroutine made: that goroutine */

static Failure failures = {.next = &failures, .prev = &failures}; /* uncollected ones */
static PyObject *excepthook; /* gmp._excepthook.report: called with (exc, id, name, created) */
static PyObject *lock_os_thread_name;
static PyObject *trace_key, *profile_key, *settrace_fn, *setprofile_fn, *threading_dict;

/* ---- names and places ---- */

PyObject *
py_goroutine_name(PyObject *fn)
{
    if (fn == NULL)
        return PyUnicode_FromString("");
    if (PyFunction_Check(fn))
        return Py_NewRef(((PyFunctionObject *)fn)->func_qualname);
    PyObject *name = PyObject_GetAttrString(fn, "__qualname__");
    if (name != NULL && PyUnicode_Check(name))
        return name;
    Py_XDECREF(name);
    PyErr_Clear();
    return PyUnicode_FromString(Py_TYPE(fn)->tp_name);
}

PyObject *
py_goroutine_created(PyG *pg)
{
    if (pg->created_code == NULL)
        return NULL;
    PyCodeObject *code = (PyCodeObject *)pg->created_code;
    return PyUnicode_FromFormat("%U at %U:%d", code->co_qualname, code->co_filename,
                                PyCode_Addr2Line(code, pg->created_lasti));
}

/* ---- failures ---- */

static void
failure_unlink(Failure *f)
{
    if (f->next == NULL)
        return;
    f->next->prev = f->prev;
    f->prev->next = f->next;
    f->next = f->prev = NULL;
}

static void
failure_free(Failure *f)
{
    failure_unlink(f);
    Py_XDECREF(f->exc);
    Py_XDECREF(f->created);
    PyMem_Free(f);
}

/* Calls the hook, once per failure.  Keeps no exception. */
static void
failure_report(Failure *f, uint64_t id, PyObject *name)
{
    if (f->collected)
        return;
    f->collected = true;
    failure_unlink(f);
    if (PyErr_GivenExceptionMatches(f->exc, PyExc_SystemExit))
        return; /* as in threading: a way to end quietly */
    PyObject *r = NULL;
    if (excepthook != NULL)
        r = PyObject_CallFunction(excepthook, "OKOO", f->exc, (unsigned long long)id, name ? name : Py_None,
                                  f->created ? f->created : Py_None);
    if (r == NULL)
        PyErr_WriteUnraisable(f->exc);
    Py_XDECREF(r);
}

void
py_report_failures(void)
{
    while (failures.next != &failures) {
        Failure *f = failures.next;
        Goroutine *h = (Goroutine *)Py_NewRef((PyObject *)f->owner);
        failure_report(f, h->from.start.goid, h->name);
        failure_unlink(f);
        Py_DECREF(h);
    }
}

/* ---- the goroutine's own code ---- */

#if PY_VERSION_HEX < 0x030C0000
/* 3.11 has no dict watchers, but a version tag. */
static uint64_t hooks_seen;
static bool
hooks_changed(void)
{
    uint64_t tag = ((PyDictObject *)threading_dict)->ma_version_tag;
    bool changed = tag != hooks_seen;
    hooks_seen = tag;
    return changed;
}
#else
static bool hooks_dirty = true;
static int
hooks_watcher(PyDict_WatchEvent event, PyObject *dict, PyObject *key, PyObject *value)
{
    (void)event, (void)dict, (void)key, (void)value;
    hooks_dirty = true;
    return 0;
}
static bool
hooks_changed(void)
{
    bool changed = hooks_dirty;
    hooks_dirty = false;
    return changed;
}
#endif

static bool trace_set, profile_set;

/* threading.settrace and setprofile apply to goroutines as to threads. */
static void
start_tracing(void)
{
    if (hooks_changed()) {
        PyObject *hook = PyDict_GetItemWithError(threading_dict, trace_key);
        trace_set = hook != NULL && hook != Py_None;
        hook = PyDict_GetItemWithError(threading_dict, profile_key);
        profile_set = hook != NULL && hook != Py_None;
        PyErr_Clear();
    }
    if (GMP_LIKELY(!trace_set && !profile_set))
        return;
    for (int i = 0; i < 2; i++) {
        PyObject *hook = PyDict_GetItemWithError(threading_dict, i == 0 ? profile_key : trace_key);
        if (hook == NULL || hook == Py_None)
            continue;
        PyObject *r = PyObject_CallOneArg(i == 0 ? setprofile_fn : settrace_fn, hook);
        if (r == NULL)
            PyErr_WriteUnraisable(hook);
        Py_XDECREF(r);
    }
}

static PyObject *
call_function(PyG *pg)
{
    if (pg->argtuple != NULL) {
        Py_ssize_t nkw = pg->kwnames != NULL ? PyTuple_GET_SIZE(pg->kwnames) : 0;
        return PyObject_Vectorcall(pg->fn, &PyTuple_GET_ITEM(pg->argtuple, 0),
                                   (size_t)(PyTuple_GET_SIZE(pg->argtuple) - nkw), pg->kwnames);
    }
    size_t nkw = pg->kwnames != NULL ? (size_t)PyTuple_GET_SIZE(pg->kwnames) : 0;
    return PyObject_Vectorcall(pg->fn, pg->args + 1, ((size_t)pg->nargs - nkw) | PY_VECTORCALL_ARGUMENTS_OFFSET,
                               pg->kwnames);
}

static void
clear_call(PyG *pg)
{
    for (int i = 1; i <= pg->nargs && pg->argtuple == NULL; i++)
        Py_CLEAR(pg->args[i]);
    pg->nargs = 0;
    Py_CLEAR(pg->argtuple);
    Py_CLEAR(pg->kwnames);
}

static void
wake_joiners(PyG *pg)
{
    G *head = NULL, **tail = &head;
    Sudog *sg;
    while ((sg = waitq_pop(&pg->joiners)) != NULL) {
        *tail = sg->g;
        tail = &sg->g->link;
    }
    *tail = NULL;
    while (head != NULL) {
        G *gp = head;
        head = gp->link;
        goready(gp);
    }
}

static PyObject *
take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        PyException_SetTraceback(value, tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    return value;
#endif
}

static void
raise_exception(PyObject *exc) /* steals */
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(exc);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exc)), exc, PyException_GetTraceback(exc));
#endif
}

/* The goroutine raised.  Called with the exception set. */
static GMP_NOINLINE void
finish_failed(PyG *pg, Goroutine *h)
{
    PyObject *exc = take_exception();
    Failure *f = PyMem_Calloc(1, sizeof *f);
    PyObject *name = py_goroutine_name(pg->fn);
    PyErr_Clear();
    if (f == NULL || exc == NULL) {
        PyErr_NoMemory();
        PyErr_WriteUnraisable(exc);
        PyErr_Clear();
        Py_XDECREF(name);
        Py_XDECREF(exc);
        PyMem_Free(f);
        h->u.result = Py_NewRef(Py_None);
        h->state = GR_RETURNED;
        return;
    }
    f->exc = exc;
    f->created = py_goroutine_created(pg);
    f->owner = h;
    f->next = failures.next;
    f->prev = &failures;
    f->next->prev = f->prev->next = f;
    PyErr_Clear();
    h->u.failure = f;
    Py_XSETREF(h->name, name);
    h->state = GR_FAILED;
    PyObject_GC_Track(h);
}

static int
lock_thread(void)
{
    if (PY_MUST_LOOK(getg()) && py_greenlet_park() < 0) /* it may have to move, which greenlets cannot */
        return -1;
    int code = lockosthread(false);
    if (code == GMP_EAGAIN)
        PyErr_SetString(PyExc_MemoryError, "lock_os_thread: no thread could be started for the goroutine");
    else if (code < 0)
        PyErr_SetString(PyExc_OverflowError, "lock_os_thread: locked too often");
    return code;
}

/* The goroutine that forked has ended, in the child: it was all there was. */
static GMP_NOINLINE GMP_NORETURN void
end_forked_child(bool failed)
{
    static const char *const streams[] = {"stdout", "stderr"};
    for (int i = 0; i < 2; i++) {
        PyObject *f = PySys_GetObject(streams[i]);
        PyObject *r = f != NULL && f != Py_None ? PyObject_CallMethod(f, "flush", NULL) : NULL;
        Py_XDECREF(r);
        PyErr_Clear();
    }
    fflush(NULL);
    _exit(failed);
}

static void
pyg_entry(G *gp)
{
    PyG *pg = (PyG *)gp;
    pg->handle->queued = false;
    tstate_begin(pg);
    start_tracing();
    PyObject *r = GMP_UNLIKELY(pg->lock) && lock_thread() < 0 ? NULL : call_function(pg);
    clear_call(pg);
    Goroutine *h = pg->handle;
    if (GMP_LIKELY(r != NULL)) {
        h->u.result = r;
        h->state = GR_RETURNED;
        if (Py_REFCNT(h) > 1) {
            h->name = py_goroutine_name(pg->fn);
            PyErr_Clear();
            if (PyObject_IS_GC(r))
                PyObject_GC_Track(h); /* only now can it be part of a cycle */
        }
    }
    else {
        finish_failed(pg, h);
    }
    if (GMP_UNLIKELY(pg->joiners.first != NULL))
        wake_joiners(pg);
    if (GMP_UNLIKELY(h->state == GR_FAILED && Py_REFCNT(h) == 1))
        failure_report(h->u.failure, h->from.start.goid, h->name);
    if (GMP_UNLIKELY(pg == py_forked)) {
        py_report_failures();
        end_forked_child(h->state == GR_FAILED);
    }
    pg->handle = NULL;
    Py_DECREF(h);
    Py_CLEAR(pg->fn);
    tstate_scrub();
    Py_CLEAR(pg->created_code);
    if (PY_MUST_LOOK(gp)) {
        py_greenlet_end();
        tstate_scrub();
    }
    goexit();
}

/* ---- the handle ---- */

/* Freed handles: a spawn is mostly allocations, and allocating objects of a type that may be tracked calls the cyclic
 * collector.  As many are kept as there are goroutines to reuse.  GIL. */
static Goroutine *free_handles;
static size_t nfree_handles;

static Goroutine *
handle_new(void)
{
    Goroutine *h = free_handles;
    if (GMP_LIKELY(h != NULL)) {
        free_handles = (Goroutine *)h->u.pg;
        nfree_handles--;
        (void)PyObject_INIT((PyObject *)h, &Goroutine_Type);
        return h;
    }
    return PyObject_GC_New(Goroutine, &Goroutine_Type);
}

static void
handle_free(Goroutine *h)
{
    if (h->state == GR_RETURNED) {
        Py_CLEAR(h->u.result);
    }
    else if (h->state == GR_FAILED) {
        Failure *f = h->u.failure;
        if (!f->collected) {
#if PY_VERSION_HEX >= 0x030C0000
            PyObject *saved = PyErr_GetRaisedException();
            failure_report(f, h->from.start.goid, h->name);
            PyErr_SetRaisedException(saved);
#else
            PyObject *type, *value, *tb;
            PyErr_Fetch(&type, &value, &tb);
            failure_report(f, h->from.start.goid, h->name);
            PyErr_Restore(type, value, tb);
#endif
        }
        failure_free(f);
    }
    Py_CLEAR(h->name);
    if (nfree_handles < stack_count(STACK_PYTHON)) {
        h->u.pg = (PyG *)free_handles;
        free_handles = h;
        nfree_handles++;
    }
    else {
        PyObject_GC_Del(h);
    }
}

static void
handle_dealloc(PyObject *self)
{
    if (!PyObject_GC_IsTracked(self)) {
        handle_free((Goroutine *)self);
        return;
    }
    /* It may hold the last reference to another handle, and that to the next: thousands deep. */
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, handle_dealloc) handle_free((Goroutine *)self);
    Py_TRASHCAN_END
}

static int
handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    Goroutine *h = (Goroutine *)self;
    if (h->state == GR_RETURNED)
        Py_VISIT(h->u.result);
    else if (h->state == GR_FAILED)
        Py_VISIT(h->u.failure->exc);
    return 0;
}

static int
handle_clear(PyObject *self)
{
    Goroutine *h = (Goroutine *)self;
    if (h->state == GR_RETURNED)
        Py_SETREF(h->u.result, Py_NewRef(Py_None));
    else if (h->state == GR_FAILED && h->u.failure->collected)
        Py_SETREF(h->u.failure->exc, PyObject_CallNoArgs(PyExc_RuntimeError));
    PyErr_Clear();
    return 0;
}

static int
wait_done(Goroutine *h, PyWait *w)
{
    while (h->state == GR_RUNNING) {
        if (w->timeout == 0)
            return GMP_ETIMEDOUT;
        if (py_wait_begin(w) < 0)
            return 1;
        PyG *pg = h->queued ? (PyG *)bindstart(SCHED, &h->from.start) : h->u.pg;
        if (pg == NULL)
            return GMP_ENOMEM;
        if (getg() == &pg->g) {
            PyErr_SetString(PyExc_RuntimeError, "a goroutine cannot join itself");
            return 1;
        }
        int code = waitq_park(&pg->joiners, NULL, false, WAIT_JOIN, w->timeout);
        if (code < 0 && h->state == GR_RUNNING) {
            int again = py_wait_again(w, code);
            if (again < 0)
                return 1;
            if (again == 0)
                return code;
        }
    }
    return GMP_OK;
}

/* The value, or its exception raised: a new reference. */
static PyObject *
handle_wait(Goroutine *h, PyObject *timeout, const char *what)
{
    PyWait w = {0};
    if (py_timeout(timeout, what, &w.timeout) < 0)
        return NULL;
    int code = wait_done(h, &w);
    if (code > 0)
        return NULL;
    if (code < 0) {
        py_raise_code(code, what, &w);
        return NULL;
    }
    if (h->state == GR_RETURNED)
        return Py_NewRef(h->u.result);
    Failure *f = h->u.failure;
    f->collected = true;
    failure_unlink(f);
    raise_exception(Py_NewRef(f->exc));
    return NULL;
}

PyObject *
py_timeout_arg(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, const char *what)
{
    Py_ssize_t nkw = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs + nkw == 0)
        return Py_None;
    if (nargs + nkw > 1) {
        PyErr_Format(PyExc_TypeError, "%s takes at most 1 argument (timeout), %zd were given", what, nargs + nkw);
        return NULL;
    }
    if (nkw == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout") != 0) {
        PyErr_Format(PyExc_TypeError, "%s has no argument %R, only timeout", what, PyTuple_GET_ITEM(kwnames, 0));
        return NULL;
    }
    return args[0];
}

static PyObject *
handle_join(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *timeout = py_timeout_arg(args, nargs, kwnames, "Goroutine.join()");
    if (timeout == NULL)
        return NULL;
    PyObject *r = handle_wait((Goroutine *)self, timeout, "Goroutine.join()");
    if (r == NULL)
        return NULL;
    Py_DECREF(r);
    Py_RETURN_NONE;
}

static PyObject *
handle_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *timeout = py_timeout_arg(args, nargs, kwnames, "Goroutine.result()");
    return timeout == NULL ? NULL : handle_wait((Goroutine *)self, timeout, "Goroutine.result()");
}

static PyObject *
handle_get_id(PyObject *self, void *closure)
{
    return PyLong_FromUnsignedLongLong(((Goroutine *)self)->from.start.goid);
}

static PyObject *
handle_get_name(PyObject *self, void *closure)
{
    Goroutine *h = (Goroutine *)self;
    if (h->queued)
        return py_goroutine_name(h->from.fn);
    if (h->state == GR_RUNNING)
        return py_goroutine_name(h->u.pg->fn);
    return h->name != NULL ? Py_NewRef(h->name) : PyUnicode_FromString("");
}

static PyObject *
handle_get_done(PyObject *self, void *closure)
{
    uint8_t state = ((Goroutine *)self)->state;
    return PyBool_FromLong(state == GR_RETURNED || state == GR_FAILED);
}

static PyObject *
handle_repr(PyObject *self)
{
    static const char *const states[] = {"running", "returned", "failed"};
    Goroutine *h = (Goroutine *)self;
    PyObject *name = handle_get_name(self, NULL);
    if (name == NULL)
        return NULL;
    PyObject *r = PyUnicode_FromFormat("<gmp.Goroutine %llu %U %s>", (unsigned long long)h->from.start.goid, name,
                                       states[h->state]);
    Py_DECREF(name);
    return r;
}

static PyGetSetDef handle_getset[] = {
    {"id", handle_get_id, NULL, PyDoc_STR("The goroutine's number, an int; never reused."), NULL},
    {"name", handle_get_name, NULL, PyDoc_STR("The __qualname__ of the function it was started with."), NULL},
    {"done", handle_get_done, NULL, PyDoc_STR("True when the function has returned or raised."), NULL},
    {0},
};
static PyMethodDef handle_methods[] = {
    {"join", (PyCFunction)(void (*)(void))handle_join, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "join($self, /, timeout=None)\n--\n\nWait until the goroutine has ended.\n\n"
         "timeout: seconds; None waits for ever, 0 tries.  Raises what the goroutine raised, which then counts as\n"
         "collected and is not reported; TimeoutError when the time is up.")},
    {"result", (PyCFunction)(void (*)(void))handle_result, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "result($self, /, timeout=None)\n--\n\nWait for the goroutine and return what its function returned.\n\n"
         "timeout: seconds; None waits for ever, 0 tries.  Raises what the goroutine raised; TimeoutError when the\n"
         "time is up.")},
    {0},
};
PyTypeObject Goroutine_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp.Goroutine",
    .tp_doc = PyDoc_STR("A goroutine that was started by gmp.go(); Go has no such handle."),
    .tp_basicsize = sizeof(Goroutine),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = handle_dealloc,
    .tp_traverse = handle_traverse,
    .tp_clear = handle_clear,
    .tp_repr = handle_repr,
    .tp_methods = handle_methods,
    .tp_getset = handle_getset,
};

/* ---- go ---- */

typedef struct Call {
    Goroutine *h;
    PyObject *const *args;
    int nargs; /* in args; 0 when they are in a tuple */
} Call;

static void
fill_from(PyG *pg, Goroutine *h)
{
    pg->handle = h;
    pg->fn = h->from.fn;
    pg->argtuple = h->from.argtuple;
    pg->kwnames = h->from.kwnames;
    pg->context = h->from.context;
    pg->created_code = h->from.code;
    pg->created_lasti = h->from.lasti;
    pg->nargs = 0;
    pg->lock = h->from.lock;
    pg->system = false;
    h->u.pg = pg;
}

static void
fill(G *gp, void *arg)
{
    PyG *pg = (PyG *)gp;
    Call *call = arg;
    fill_from(pg, call->h);
    call->h->from.start.goid = gp->goid;
    pg->nargs = (int16_t)call->nargs;
    for (int i = 0; i < call->nargs; i++)
        pg->args[i + 1] = call->args[i];
}

static void
fill_queued(G *gp, Start *st)
{
    fill_from((PyG *)gp, CONTAINER_OF(st, Goroutine, from.start));
}

static PyObject *
start_goroutine(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, bool lock)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "go() needs a function as its first argument: gmp.go(fn, *args)");
        return NULL;
    }
    PyObject *fn = args[0];
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "go() argument 1 must be a function or another callable, not %.200s%s",
                     Py_TYPE(fn)->tp_name,
                     fn == Py_None ? " (pass the function itself, not the result of calling it)" : "");
        return NULL;
    }
    if (GMP_UNLIKELY(py_stopped)) {
        PyErr_SetString(PyExc_RuntimeError, "go(): the interpreter is shutting down, no goroutine can be started");
        return NULL;
    }
    Goroutine *h = handle_new();
    if (h == NULL)
        return NULL;
    h->u.result = NULL;
    h->name = NULL;
    h->state = GR_RETURNED; /* until it is sure to run */
    h->queued = runq_long(SCHED);
    PyObject *argtuple = NULL, *context;
    Py_ssize_t total = nargs - 1 + (kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0);
    Call call = {.h = h, .args = args + 1};
    if (total > (h->queued ? 0 : PYG_ARGS)) {
        argtuple = PyTuple_New(total);
        for (Py_ssize_t i = 0; argtuple != NULL && i < total; i++)
            PyTuple_SET_ITEM(argtuple, i, Py_NewRef(args[i + 1]));
    }
    else {
        call.nargs = (int)total;
    }
    if ((total > call.nargs && argtuple == NULL) || tstate_context(&context) < 0) {
        Py_XDECREF(argtuple);
        Py_DECREF(h);
        return NULL;
    }
    for (int i = 0; i < call.nargs; i++)
        Py_INCREF(call.args[i]);
    h->from.fn = Py_NewRef(fn);
    h->from.argtuple = argtuple;
    h->from.kwnames = Py_XNewRef(kwnames);
    h->from.context = context;
    h->from.lock = lock;
    tstate_where(&h->from.code, &h->from.lasti);
    h->state = GR_RUNNING;
    Py_INCREF(h); /* one for the goroutine, one for the caller */
    if (h->queued ? newproc_later(SCHED, &h->from.start) == GMP_OK : newproc(SCHED, pyg_entry, fill, &call) != 0)
        return (PyObject *)h;
    PyErr_Format(PyExc_MemoryError,
                 "go(): memory for another goroutine was refused (%zu KiB of address space and one page each; see "
                 "RLIMIT_AS and vm.overcommit_memory)",
                 stack_class_size(STACK_PYTHON) / 1024);
    h->state = GR_RETURNED;
    h->queued = false;
    for (int i = 0; i < call.nargs; i++)
        Py_DECREF(call.args[i]);
    Py_XDECREF(argtuple);
    Py_XDECREF(kwnames);
    Py_XDECREF(context);
    Py_XDECREF(h->from.code);
    Py_DECREF(fn);
    Py_DECREF(h);
    Py_DECREF(h);
    return NULL;
}

/* Is go's own keyword among the names?  Its place, or -1. */
static Py_ssize_t
find_option(PyObject *kwnames)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (name == lock_os_thread_name || PyUnicode_Compare(name, lock_os_thread_name) == 0)
            return i;
    }
    return -1;
}

/* go(..., lock_os_thread=True): calls go without that argument, the at-th of those with names. */
static GMP_NOINLINE PyObject *
go_with_option(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t at)
{
    Py_ssize_t nkw = PyTuple_GET_SIZE(kwnames);
    int lock = PyObject_IsTrue(args[nargs + at]);
    if (lock < 0)
        return NULL;
    PyObject *names = NULL, *r = NULL;
    PyObject **rest = PyMem_Malloc((size_t)(nargs + nkw) * sizeof *rest);
    if (rest == NULL)
        return PyErr_NoMemory();
    Py_ssize_t skip = nargs + at;
    memcpy(rest, args, (size_t)skip * sizeof *rest);
    memcpy(rest + skip, args + skip + 1, (size_t)(nkw - at - 1) * sizeof *rest);
    if (nkw == 1 || (names = PyTuple_New(nkw - 1)) != NULL) {
        for (Py_ssize_t i = 0, k = 0; i < nkw; i++)
            if (i != at)
                PyTuple_SET_ITEM(names, k++, Py_NewRef(PyTuple_GET_ITEM(kwnames, i)));
        r = start_goroutine(rest, nargs, names, lock != 0);
    }
    Py_XDECREF(names);
    PyMem_Free(rest);
    return r;
}

PyObject *
py_go(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t at = GMP_UNLIKELY(kwnames != NULL) && nargs > 0 ? find_option(kwnames) : -1;
    return at < 0 ? start_goroutine(args, nargs, kwnames, false) : go_with_option(args, nargs, kwnames, at);
}

static PyObject *
py_gosched(PyObject *module, PyObject *unused)
{
    if (GMP_UNLIKELY(py_stopped))
        Py_RETURN_NONE;
    G *gp = py_self();
    if (gp == NULL || (PY_MUST_LOOK(gp) && py_greenlet_park() < 0))
        return NULL;
    gosched();
    Py_RETURN_NONE;
}

static PyObject *
py_sleep(PyObject *module, PyObject *arg)
{
    PyWait w = {0};
    if (py_seconds(arg, "sleep()", &w.timeout) < 0)
        return NULL;
    if (w.timeout == 0)
        return py_gosched(module, NULL);
    for (;;) {
        if (py_wait_begin(&w) < 0)
            return NULL;
        int code = gosleep(w.timeout);
        if (GMP_LIKELY(code == GMP_OK))
            Py_RETURN_NONE;
        int again = py_wait_again(&w, code);
        if (again == 0)
            py_raise_code(code, "sleep()", &w);
        if (again <= 0)
            return NULL;
    }
}

/* ---- threads of other origin ---- */

/* The Gs of threads that have ended, for the next ones; GIL or not, hence the lock. */
static Mutex spare_lock;
static G *spare_thread_gs;

static PyG *
thread_g_new(void)
{
    mutex_lock(&spare_lock);
    PyG *pg = (PyG *)spare_thread_gs;
    if (pg != NULL)
        spare_thread_gs = pg->g.link;
    mutex_unlock(&spare_lock);
    if (pg == NULL)
        return calloc(1, sizeof *pg);
    uint32_t parkseq = pg->g.parkseq;
    /* All but cls, which sysmon may be reading. */
    memset(pg, 0, offsetof(PyG, g.cls));
    memset((char *)pg + offsetof(PyG, g.cls) + sizeof pg->g.cls, 0,
           sizeof *pg - offsetof(PyG, g.cls) - sizeof pg->g.cls);
    pg->g.parkseq = parkseq;
    return pg;
}

static void
thread_g_free(PyG *pg)
{
    mutex_lock(&spare_lock);
    pg->g.link = spare_thread_gs;
    spare_thread_gs = &pg->g;
    mutex_unlock(&spare_lock);
}

static void
thread_ended(void *arg)
{
    M *mp = arg;
    PyG *pg = (PyG *)mp->thread_g;
    if (py_stopped || pg == NULL || mp->curg != &pg->g)
        return; /* the interpreter ends threads in the middle of what they do; the scheduler has stopped */
    disown_thread(mp);
    if (pg != py_main)
        thread_g_free(pg);
}

G *
py_self_slow(void)
{
    M *mp = getm();
    PyG *pg;
    if (mp == NULL) {
        pg = thread_g_new();
        if (pg == NULL || (pg->g.cls = SCHED->cls, mp = adopt_thread(SCHED, &pg->g)) == NULL) {
            if (pg != NULL)
                thread_g_free(pg);
            PyErr_SetString(PyExc_MemoryError, "gmp: memory for the calling thread's scheduler stack was refused");
            return NULL;
        }
        GMP_CHECK(sys_at_thread_exit(thread_ended, mp) == GMP_OK);
        current_find(mp, PyThreadState_Get());
        if (py_main == NULL && tstate_is_main_thread()) {
            pg->g.interruptible = true;
            py_main = pg;
            atomic_store(&SCHED->mainm, mp);
            mp->picky = SCHED->mainpicky; /* if one keeps its thread, the main goroutine is moved: rescue() */
        }
    }
    else {
        pg = (PyG *)mp->curg;
    }
    pg->ts = PyThreadState_Get(); /* it may have another one than last time: PyGILState_Ensure makes and drops them */
    return &pg->g;
}

/* ---- the main goroutine on another thread ---- */

/* threading.main_thread() is the thread of the main goroutine, wherever that runs: at shutdown it has to be. */
static int
main_moved(void *unused)
{
    (void)unused;
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *main_thread = threading != NULL ? PyObject_CallMethod(threading, "main_thread", NULL) : NULL;
    PyObject *active = threading != NULL ? PyObject_GetAttrString(threading, "_active") : NULL;
    PyObject *old = main_thread != NULL ? PyObject_GetAttrString(main_thread, "_ident") : NULL;
    PyObject *now = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    if (old != NULL && now != NULL && active != NULL && PyDict_Check(active)) {
        PyObject *holder = PyDict_GetItemWithError(active, old);
        if (holder == main_thread && PyDict_DelItem(active, old) < 0)
            PyErr_Clear();
        if (PyDict_SetItem(active, now, main_thread) < 0 || PyObject_SetAttrString(main_thread, "_ident", now) < 0)
            PyErr_Clear();
    }
    PyErr_Clear();
    Py_XDECREF(threading);
    Py_XDECREF(main_thread);
    Py_XDECREF(active);
    Py_XDECREF(old);
    Py_XDECREF(now);
    return 0;
}

static inline void
watch_main(G *gp)
{
    static M *where;
    if (GMP_LIKELY(gp != (G *)py_main) || where == gp->m)
        return;
    if (where != NULL)
        Py_AddPendingCall(main_moved, NULL); /* runs in the main goroutine, before its next lines */
    where = gp->m;
}

/* ---- the class ---- */

static void
cls_swap(G *from, G *to)
{
    tstate_swap((PyG *)from, (PyG *)to, to->m);
    watch_main(to);
}

static void
cls_resume(G *gp)
{
    tstate_attach((PyG *)gp, gp->m);
    watch_main(gp);
}

static void
cls_suspend(G *gp)
{
    tstate_detach((PyG *)gp);
}

static int
cls_create(G *gp)
{
    return tstate_new((PyG *)gp);
}

static bool
cls_detached(G *gp)
{
    return tstate_detached((PyG *)gp);
}

static void
cls_poll_signals(void)
{
    PyG *pg = py_main;
    if (pg == NULL || !tstate_signal_pending() || goready_interrupt(&pg->g, GMP_EINTR))
        return;
    /* It runs.  If it is in a system call, on another thread than its own, the signal has interrupted the wrong one. */
    M *mp = atomic_load_relaxed(&pg->g.m);
    if (mp != NULL && mp != SCHED->mainm && atomic_load(&pg->g.status) == G_RUNNING && tstate_detached(pg))
        sys_thread_interrupt(mp->tid);
}

static void
cls_prefetch(G *gp)
{
    tstate_prefetch((PyG *)gp);
}

static const Class python_class = {
    .name = "python",
    .g_size = (sizeof(PyG) + GMP_CACHELINE - 1) / GMP_CACHELINE * GMP_CACHELINE,
    .above = PY_FRAMES_SIZE,
    .stack = STACK_PYTHON,
    .own_threads = true,
    .swap = cls_swap,
    .resume = cls_resume,
    .suspend = cls_suspend,
    .create = cls_create,
    .detached = cls_detached,
    .prefetch = cls_prefetch,
    .start_entry = pyg_entry,
    .start_fill = fill_queued,
    .poll_signals = cls_poll_signals,
    .signal_waits = tstate_signal_pending,
    .signal_word = tstate_signal_word,
    .hurry = tstate_hurry,
    .idle = py_idle,
};

/* ---- a stack overflow in C code ---- */

static struct sigaction old_segv, old_bus;

static void
on_fault(int sig, siginfo_t *info, void *context)
{
    StackClass cls;
    void *lo;
    bool guard;
    native_fault(info->si_addr);
    if (py_quitting)
        _exit(2);
    if (stack_find(info->si_addr, &cls, &lo, &guard) && guard && cls == STACK_PYTHON) {
        PyG *pg = (PyG *)slot_g(SCHED->cls, lo);
        char msg[400];
        PyObject *fn = pg->fn;
        /* Only plain reads: the interpreter's state may be anything. */
        const char *name = "?";
        if (fn != NULL && PyFunction_Check(fn)) {
            PyObject *q = ((PyFunctionObject *)fn)->func_qualname;
            if (q != NULL && PyUnicode_IS_COMPACT_ASCII(q))
                name = (const char *)PyUnicode_DATA(q);
        }
        else if (fn != NULL) {
            name = Py_TYPE(fn)->tp_name;
        }
        int n =
            snprintf(msg, sizeof msg,
                     "fatal error: gmp: stack overflow in goroutine %llu (%.200s): C code used more than its %zu KiB; "
                     "run it on a thread, or recurse less\n",
                     (unsigned long long)pg->g.goid, name, stack_class_size(cls) / 1024);
        ssize_t ignored = write(2, msg, (size_t)n);
        (void)ignored;
    }
    py_dump_faulting();
    /* On to whoever handled it before (faulthandler), or to the default action when the instruction faults again. */
    struct sigaction *old = sig == SIGSEGV ? &old_segv : &old_bus;
    if ((old->sa_flags & SA_SIGINFO) != 0 && old->sa_sigaction != NULL) {
        old->sa_sigaction(sig, info, context);
    }
    else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(sig);
    }
    else {
        signal(sig, SIG_DFL);
        if (info->si_code <= 0)
            raise(sig); /* it was sent: no instruction will fault again */
    }
}

static void
install_fault_handler(void)
{
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGSEGV, &sa, &old_segv);
    sigaction(SIGBUS, &sa, &old_bus);
}

/* ---- start and end ---- */

static PyObject *
py_set_excepthook(PyObject *module, PyObject *arg)
{
    Py_XSETREF(excepthook, Py_NewRef(arg));
    Py_RETURN_NONE;
}

/* The main goroutine may be away from its thread (rescue), which is where the interpreter should end: give it the chance to
 * go home. */
static void
go_home(void)
{
    if (py_main == NULL || getg() != &py_main->g)
        return;
    if (PY_MUST_LOOK(getg()) && py_greenlet_park() < 0)
        return PyErr_Clear();
    for (int i = 0; i < 20 && getg() == &py_main->g && getm() != SCHED->mainm && !py_stopped; i++)
        gosleep(1000 * 1000);
}

void
py_stop(void)
{
    if (py_stopped)
        return;
    go_home();
    py_report_failures();
    py_uninstall_quit();
    py_stopped = true;
    sched_stop(SCHED);
#if PY_VERSION_HEX < 0x030E0000
    /* It could not: a goroutine keeps the main thread.  Up to 3.13 the interpreter would end that thread as soon as it asks for
     * the GIL, by unwinding to the bottom of the main stack, which is in use here. */
    if (py_main != NULL && getg() == &py_main->g && getm() != SCHED->mainm && !tstate_halt_main_thread())
        sys_thread_freeze(
            SCHED->mainm->tid); /* in a call; not while it waits for the GIL, which would keep what that is made of */
#endif
    tstate_forget();
}

static PyObject *
py_stop_method(PyObject *module, PyObject *unused)
{
    py_stop();
    Py_RETURN_NONE;
}

/* fork: only the forking goroutine lives on in the child.  No lock is taken around it: whoever holds one of stack.c's has
 * the GIL, and the scheduler's lists are made anew. */
static PyObject *
py_before_fork(PyObject *module, PyObject *unused)
{
    tstate_fork_id(true);
    grpc_before_fork();
    Py_RETURN_NONE;
}

static PyObject *
py_after_fork_parent(PyObject *module, PyObject *unused)
{
    tstate_fork_id(false);
    grpc_after_fork();
    Py_RETURN_NONE;
}

static PyObject *
py_after_fork_child(PyObject *module, PyObject *unused)
{
    lock_after_fork();
    spare_lock = (Mutex){0};
    spare_thread_gs = NULL; /* another thread may have been at it */
    M *mp = getm();
    PyG *self = mp != NULL ? (PyG *)mp->curg : NULL;
    sysmon_afterfork_child();
    netpoll_afterfork_child();
    sched_afterfork_child(SCHED);
    sched_afterfork_child(&scheds[SET_NATIVE]);
    grpc_afterfork_child();
    tstate_afterfork_child(self);
    py_time_afterfork_child();
    for (Failure *f = failures.next; f != &failures; f = f->next)
        f->collected = true; /* the parent's to report */
    failures.next = failures.prev = &failures;
    py_main = self;
    if (self != NULL) {
        self->g.interruptible = true;
        if (self->g.stack_lo == NULL)
            SCHED->mainm = mp;
        else
            py_forked = self;
    }
    Py_RETURN_NONE;
}

static PyObject *
py_lock_os_thread(PyObject *module, PyObject *unused)
{
    return py_self() == NULL || lock_thread() < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
py_unlock_os_thread(PyObject *module, PyObject *unused)
{
    if (py_self() == NULL)
        return NULL;
    unlockosthread(false);
    Py_RETURN_NONE;
}

static PyObject *
py_goid(PyObject *module, PyObject *unused)
{
    G *gp = py_self();
    return gp != NULL ? PyLong_FromUnsignedLongLong(gp->goid) : NULL;
}

PyMethodDef goroutine_methods[] = {
    {"go", (PyCFunction)(void (*)(void))py_go, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR(
         "go($module, fn, /, *args, lock_os_thread=False, **kwargs)\n--\n\nStart fn(*args, **kwargs) as a goroutine "
         "and "
         "return its handle.\n\n"
         "lock_os_thread: it calls runtime.lock_os_thread() first; the only keyword that fn does not get.\n"
         "It runs with a copy of the caller's context variables.  An exception that nobody collects through the\n"
         "handle is reported by gmp.excepthook.  Raises TypeError when fn cannot be called, MemoryError when memory\n"
         "for its stack is refused, RuntimeError at interpreter shutdown.  Go: the go statement, runtime.newproc.")},
    {"gosched", py_gosched, METH_NOARGS,
     PyDoc_STR("gosched($module, /)\n--\n\nLet other goroutines run; come back after those that are runnable now.\n\n"
               "Go: runtime.Gosched.")},
    {"sleep", py_sleep, METH_O,
     PyDoc_STR(
         "sleep($module, seconds, /)\n--\n\nPark the goroutine for at least this many seconds (int or float).\n\n"
         "0 lets others run.  Raises ValueError when negative or NaN, TypeError when no number.  Go: time.Sleep.")},
    {"lock_os_thread", py_lock_os_thread, METH_NOARGS,
     PyDoc_STR(
         "lock_os_thread($module, /)\n--\n\nGive the calling goroutine an OS thread of its own: it runs nowhere else, "
         "and "
         "nothing else\nruns there.\n\n"
         "It may be taken to another thread first.  Calls are counted.  When the goroutine ends locked, its thread\n"
         "ends.  Raises MemoryError when no thread can be had.  Go: runtime.LockOSThread.")},
    {"unlock_os_thread", py_unlock_os_thread, METH_NOARGS,
     PyDoc_STR("unlock_os_thread($module, /)\n--\n\nUndo one lock_os_thread(); does nothing when there is none.\n\n"
               "Go: runtime.UnlockOSThread.")},
    {"_goid", py_goid, METH_NOARGS,
     PyDoc_STR("_goid($module, /)\n--\n\nThe calling goroutine's number; a thread counts as one.")},
    {"_set_excepthook", py_set_excepthook, METH_O, NULL},
    {"_before_fork", py_before_fork, METH_NOARGS, NULL},
    {"_after_fork_parent", py_after_fork_parent, METH_NOARGS, NULL},
    {"_after_fork_child", py_after_fork_child, METH_NOARGS, NULL},
    {"_stop", py_stop_method, METH_NOARGS, NULL},
    {0},
};

int
goroutine_init(PyObject *module)
{
    PyObject *threading = PyImport_ImportModule("threading");
    if (threading == NULL)
        return -1;
    threading_dict = Py_NewRef(PyModule_GetDict(threading));
    Py_DECREF(threading);
    trace_key = PyUnicode_InternFromString("_trace_hook");
    profile_key = PyUnicode_InternFromString("_profile_hook");
    settrace_fn = Py_XNewRef(PySys_GetObject("settrace"));
    setprofile_fn = Py_XNewRef(PySys_GetObject("setprofile"));
    lock_os_thread_name = PyUnicode_InternFromString("lock_os_thread");
    if (lock_os_thread_name == NULL || trace_key == NULL || profile_key == NULL || settrace_fn == NULL ||
        setprofile_fn == NULL)
        return -1;
#if PY_VERSION_HEX >= 0x030C0000
    int watcher = PyDict_AddWatcher(hooks_watcher);
    if (watcher < 0 || PyDict_Watch(watcher, threading_dict) < 0)
        return -1;
#endif
    if (PyType_Ready(&Goroutine_Type) < 0 ||
        PyModule_AddObjectRef(module, "Goroutine", (PyObject *)&Goroutine_Type) < 0)
        return -1;
    int code = schedinit(SET_PYTHON, &python_class, 1);
    if (code < 0) {
        py_raise_code(code, "import gmp", NULL);
        return -1;
    }
    install_fault_handler();
    if (greenlet_init() < 0)
        return -1;
    py_install_quit();
    return py_self() == NULL ? -1 : 0; /* the importing thread, usually the main one, is adopted now */
}
