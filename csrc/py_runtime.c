/* py_runtime.c: what the runtime tells about itself: counts, and the list of goroutines that gmp/_traceback.py prints. */
#include "py_gmp.h"

static PyObject *
py_num_goroutine(PyObject *module, PyObject *unused)
{
    return PyLong_FromLongLong(num_goroutine(SCHED) + 1); /* and main, as in Go */
}

static const char *
status_name(G *gp)
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

/* Appends (id, parent, status, name, created, frame) to list. */
static int
append_goroutine(PyObject *list, PyG *pg, const char *name)
{
    const char *status = status_name(&pg->g);
    if (status == NULL || pg->ts == NULL)
        return 0;
    PyObject *created = py_goroutine_created(pg);
    PyErr_Clear();
    PyObject *nm = name != NULL ? PyUnicode_FromString(name) : py_goroutine_name(pg->fn);
    PyObject *frame = NULL;
    if (pg->g.stack_lo != NULL || atomic_load(&pg->g.status) == G_WAITING || &pg->g == getg() || pg == py_main)
        frame = (PyObject *)PyThreadState_GetFrame(pg->ts); /* another thread's thread state may be gone */
    PyObject *item = nm == NULL
                         ? NULL
                         : Py_BuildValue("KKsOOO", (unsigned long long)pg->g.goid, (unsigned long long)pg->g.parentid,
                                         status, nm, created ? created : Py_None, frame ? frame : Py_None);
    int r = item != NULL ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    Py_XDECREF(nm);
    Py_XDECREF(created);
    Py_XDECREF(frame);
    return r;
}

static PyObject *
py_goroutines(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    if (list == NULL)
        return NULL;
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
    Py_DECREF(list);
    return NULL;
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
    return Py_BuildValue("{sLsIsIsIsKsKsKsKsnsnsnsnsssO}", "goroutines", (long long)num_goroutine(sched) + 1, "procs",
                         sched->np, "threads", sched->nm, "idle_threads", sched->nmidle, "runnable", queued, "timers",
                         timers, "switches", ticks, "handoffs", (unsigned long long)sched->nhandoff, "stacks",
                         (Py_ssize_t)st.carved, "stacks_in_use", (Py_ssize_t)st.in_use, "stacks_unguarded",
                         (Py_ssize_t)st.unguarded, "stack_bytes", (Py_ssize_t)stack_class_size(sched->cls->stack),
                         "guards", stack_guard_name(), "switch_keeps_gil",
                         PY_VERSION_HEX < 0x030C0000 || current_found() ? Py_True : Py_False);
}

PyMethodDef runtime_methods[] = {
    {"num_goroutine", py_num_goroutine, METH_NOARGS,
     PyDoc_STR("num_goroutine($module, /)\n--\n\nHow many goroutines exist, the main one included.  Go: "
               "runtime.NumGoroutine.")},
    {"stats", py_stats, METH_NOARGS, PyDoc_STR("stats($module, /)\n--\n\nCounts of the scheduler, a dict.")},
    {"_goroutines", py_goroutines, METH_NOARGS,
     PyDoc_STR("_goroutines($module, /)\n--\n\n[(id, parent id, status, name, created by or None, frame or None)]")},
    {0},
};
