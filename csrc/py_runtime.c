/* py_runtime.c: what the runtime tells about itself: counts, and the list of goroutines that gmp/_traceback.py prints. */
#include "py_gmp.h"

#include "proc.h"
#include "trace.h"

static PyObject *
py_num_goroutine(PyObject *module, PyObject *unused)
{
    return PyLong_FromLongLong(num_goroutine(SCHED) - SCHED->nsystem + 1); /* and main, as in Go */
}

const char *
py_status_name(G *gp)
{
    switch ((GStatus)atomic_load(&gp->status)) {
    case G_RUNNABLE:
        return "runnable";
    case G_RUNNING:
        return "running";
    case G_WAITING:
        return wait_reason_name((WaitReason)gp->waitreason);
    default:
        return NULL;
    }
}

bool
py_has_frames(PyG *pg)
{
    /* Another thread's thread state may be gone. */
    return pg->g.stack_lo != NULL || atomic_load(&pg->g.status) == G_WAITING || &pg->g == getg() || pg == py_main;
}

/* Appends (id, parent, status, minutes waited, name, created, frame) to list. */
static int
append_goroutine(PyObject *list, PyG *pg, const char *name)
{
    const char *status = py_status_name(&pg->g);
    if (status == NULL || pg->ts == NULL || pg->system)
        return 0;
    PyObject *created = py_goroutine_created(pg);
    PyErr_Clear();
    PyObject *nm = name != NULL ? PyUnicode_FromString(name) : py_goroutine_name(pg->fn);
    PyObject *frame = NULL;
    if (py_has_frames(pg))
        frame = (PyObject *)PyThreadState_GetFrame(pg->ts);
    PyObject *item = nm == NULL ? NULL
                                : Py_BuildValue("KKsIOOO", (unsigned long long)pg->g.goid,
                                                (unsigned long long)pg->g.parentid, status, minutes_waited(&pg->g), nm,
                                                created ? created : Py_None, frame ? frame : Py_None);
    int r = item != NULL ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    Py_XDECREF(nm);
    Py_XDECREF(created);
    Py_XDECREF(frame);
    return r;
}

/* Goroutines without a G.  Their handles go with the GIL only, so those found now live at least until we give it back. */
typedef struct Starts {
    Start **at;
    uint32_t n, max;
} Starts;

static void
collect_start(Start *st, void *arg)
{
    Starts *found = arg;
    if (found->n < found->max)
        found->at[found->n++] = st;
}

static int
append_starts(PyObject *list)
{
    Starts found = {.max = (uint32_t)num_pending(SCHED) + 64};
    found.at = PyMem_Malloc(found.max * sizeof *found.at);
    if (found.at == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    each_start(SCHED, collect_start, &found);
    int r = 0;
    for (uint32_t i = 0; i < found.n && r == 0; i++) {
        PyStart *sp = (PyStart *)found.at[i];
        PyCodeObject *code = (PyCodeObject *)sp->code;
        PyObject *name = py_goroutine_name(sp->fn);
        PyObject *created = code != NULL ? PyUnicode_FromFormat("%U at %U:%d", code->co_qualname, code->co_filename,
                                                                PyCode_Addr2Line(code, sp->lasti))
                                         : Py_NewRef(Py_None);
        PyObject *item = name != NULL && created != NULL ? Py_BuildValue("KKsIOOO", (unsigned long long)sp->start.goid,
                                                                         (unsigned long long)sp->start.parentid,
                                                                         "runnable", 0, name, created, Py_None)
                                                         : NULL;
        r = item != NULL ? PyList_Append(list, item) : -1;
        Py_XDECREF(item);
        Py_XDECREF(name);
        Py_XDECREF(created);
    }
    PyMem_Free(found.at);
    return r;
}

static PyObject *
py_goroutines(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    if (list == NULL || append_starts(list) < 0)
        goto failed;
    if (py_main != NULL && append_goroutine(list, py_main, "main") < 0) /* its thread may have lost it: rescue() */
        goto failed;
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink) {
        PyG *pg = (PyG *)mp->thread_g;
        if (atomic_load(&mp->dead) || pg == NULL || pg == py_main || mp->set != SCHED)
            continue;
        if (append_goroutine(list, pg, "thread") < 0)
            goto failed;
    }
    const Class *cls = SCHED->cls;
    size_t n = stack_count(cls->stack);
    for (size_t i = 0; i < n; i++) {
        PyG *pg = (PyG *)slot_g(cls, stack_at(cls->stack, i));
        if (pg->g.cls == cls && pg->handle != NULL && pg != py_main && append_goroutine(list, pg, NULL) < 0)
            goto failed;
    }
    return list;
failed:
    Py_XDECREF(list);
    return NULL;
}

static PyObject *
py_status(PyObject *module, PyObject *arg)
{
    if (!Py_IS_TYPE(arg, &Goroutine_Type)) {
        PyErr_Format(PyExc_TypeError, "_status() argument must be a Goroutine, not %.200s", Py_TYPE(arg)->tp_name);
        return NULL;
    }
    Goroutine *h = (Goroutine *)arg;
    if (h->state != GR_RUNNING)
        Py_RETURN_NONE;
    const char *status = h->queued ? NULL : py_status_name(&h->u.pg->g);
    return PyUnicode_FromString(status != NULL ? status : "runnable");
}

static PyObject *
py_stats(PyObject *module, PyObject *unused)
{
    Sched *sched = SCHED;
    StackStats st;
    stack_stats(sched->cls->stack, &st);
    unsigned long long ticks = 0, queued = sched->runq.n, timers = 0;
    for (uint32_t i = 0; i < sched->np; i++) {
        ticks += sched->allp[i]->schedtick;
        queued += runqlen(sched->allp[i]);
        timers += atomic_load_relaxed(&sched->allp[i]->timers.len);
    }
    return Py_BuildValue("{sLsIsIsIsKsKsKsKsnsnsnsnsssO}", "goroutines",
                         (long long)(num_goroutine(sched) - sched->nsystem) + 1, "procs", sched->np, "threads",
                         sched->nm, "idle_threads", sched->nmidle, "runnable", queued, "timers", timers, "switches",
                         ticks, "handoffs", (unsigned long long)sched->nhandoff, "stacks", (Py_ssize_t)st.carved,
                         "stacks_in_use", (Py_ssize_t)st.in_use, "stacks_unguarded", (Py_ssize_t)st.unguarded,
                         "stack_bytes", (Py_ssize_t)stack_class_size(sched->cls->stack), "guards", stack_guard_name(),
                         "switch_keeps_gil", PY_VERSION_HEX < 0x030C0000 || current_found() ? Py_True : Py_False);
}

static PyObject *
py_set_max_threads(PyObject *module, PyObject *arg)
{
    if (!PyLong_Check(arg)) {
        PyErr_Format(PyExc_TypeError, "set_max_threads() argument must be an int, not %.200s", Py_TYPE(arg)->tp_name);
        return NULL;
    }
    long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred())
        PyErr_Clear();
    if (n < 1 || n > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "set_max_threads() argument must be 1 to 2**31 - 1, not %S", arg);
        return NULL;
    }
    return PyLong_FromUnsignedLong(set_max_threads((uint32_t)n));
}

static PyObject *
py_set_idle_threads(PyObject *module, PyObject *args)
{
    double seconds;
    unsigned int keep;
    if (!PyArg_ParseTuple(args, "dI", &seconds, &keep))
        return NULL;
    atomic_store_relaxed(&idle_m_ns, (int64_t)(seconds * 1e9));
    atomic_store_relaxed(&idle_ms_kept, keep);
    Py_RETURN_NONE;
}

static PyObject *
py_add_to_waits(PyObject *module, PyObject *arg)
{
    unsigned long seconds = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred())
        return NULL;
    add_to_waits((uint32_t)seconds);
    Py_RETURN_NONE;
}

PyMethodDef runtime_methods[] = {
    {"num_goroutine", py_num_goroutine, METH_NOARGS,
     PyDoc_STR("num_goroutine($module, /)\n--\n\nHow many goroutines exist, the main one included.  Go: "
               "runtime.NumGoroutine.")},
    {"stats", py_stats, METH_NOARGS, PyDoc_STR("stats($module, /)\n--\n\nCounts of the scheduler, a dict.")},
    {"_goroutines", py_goroutines, METH_NOARGS,
     PyDoc_STR(
         "_goroutines($module, /)\n--\n\n[(id, parent id, status, minutes waited, name, created by or None, frame "
         "or None)]\n\nOne that begins to run just now may be there twice.")},
    {"_status", py_status, METH_O,
     PyDoc_STR("_status($module, goroutine, /)\n--\n\nFor tests: its status as _goroutines() has it, None when it has "
               "ended.")},
    {"set_max_threads", py_set_max_threads, METH_O,
     PyDoc_STR(
         "set_max_threads($module, n, /)\n--\n\nLimit the threads that gmp starts to n (10,000 at first); return the "
         "limit before.\n\n"
         "Goroutines that are blocked in calls keep a thread each.  When all are in use, the other goroutines wait\n"
         "until such a call returns, and a warning says so.  Go: debug.SetMaxThreads, where the program dies.")},
    {"_set_idle_threads", py_set_idle_threads, METH_VARARGS,
     PyDoc_STR(
         "_set_idle_threads($module, seconds, keep, /)\n--\n\nFor tests: when idle threads end, and how many stay.")},
    {"_add_to_waits", py_add_to_waits, METH_O,
     PyDoc_STR("_add_to_waits($module, seconds, /)\n--\n\nFor tests: goroutines look as if they had waited longer.")},
    {0},
};
