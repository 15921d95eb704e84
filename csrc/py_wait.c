/* py_wait.c: timeouts, and what a wait does when it ends otherwise than by its own event.
 *
 * The main goroutine's waits are interruptible: a signal ends them with GMP_EINTR, the wait runs the handlers and goes on,
 * unless one raised.
 *
 * Deadlock, as in Go, when all goroutines are asleep: the core sees that all its Ms are idle, nothing is runnable and no
 * timer is set (py_idle), and ends the main goroutine's wait with GMP_EDEADLK.  Threads that the core does not know may
 * still wake someone, so the main goroutine, with the GIL, asks gmp._deadlock first (py_wait_again): it raises Deadlock, or
 * says that someone may come.  Then the question is asked again later and later: a thread that ends does not tell us.
 */
#include "py_gmp.h"

#include <math.h>

PyObject *DeadlockError;
static PyObject *deadlock_check; /* gmp._deadlock.check() -> None or the message */

#define FIRST_RECHECK_NS ((int64_t)1000 * 1000 * 1000)
#define LAST_RECHECK_NS (64 * FIRST_RECHECK_NS)
static int64_t recheck_after; /* atomic: ns between two questions, 0: none was asked in vain yet */
uint32_t py_served;           /* atomic: servers that run: a client may wake someone */
static int64_t next_check;    /* atomic: nanotime */

/* or_none: the end of the messages. */
static int
to_ns(PyObject *o, const char *what, const char *or_none, int64_t *ns)
{
    double seconds;
    if (PyFloat_CheckExact(o)) {
        seconds = PyFloat_AS_DOUBLE(o);
    }
    else if (PyLong_Check(o) || (Py_TYPE(o)->tp_as_number != NULL && (Py_TYPE(o)->tp_as_number->nb_float != NULL ||
                                                                      Py_TYPE(o)->tp_as_number->nb_index != NULL))) {
        seconds = PyFloat_AsDouble(o);
        if (seconds == -1.0 && PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_OverflowError))
                return -1;
            PyErr_Clear();
            PyObject *zero = PyLong_FromLong(0);
            int negative = zero != NULL ? PyObject_RichCompareBool(o, zero, Py_LT) : -1;
            Py_XDECREF(zero);
            if (negative < 0)
                return -1;
            seconds = negative ? -HUGE_VAL : HUGE_VAL;
        }
    }
    else {
        PyErr_Format(PyExc_TypeError, "%s: the time must be a number of seconds%s, not %.200s", what, or_none,
                     Py_TYPE(o)->tp_name);
        return -1;
    }
    if (isnan(seconds) || seconds < 0) {
        PyErr_Format(PyExc_ValueError, "%s: the time must be 0 or more seconds%s, not %R", what, or_none, o);
        return -1;
    }
    double t = ceil(seconds * 1e9);
    *ns = t >= 9.2e18 ? INT64_MAX : (int64_t)t;
    return 0;
}

int
py_timeout(PyObject *o, const char *what, int64_t *ns)
{
    if (o != Py_None)
        return to_ns(o, what, " or None", ns);
    *ns = -1;
    return 0;
}

int
py_seconds(PyObject *o, const char *what, int64_t *ns)
{
    return to_ns(o, what, "", ns);
}

int
py_wait_begin(PyWait *w)
{
    if (GMP_UNLIKELY(py_stopped)) {
        PyErr_SetString(PyExc_RuntimeError, "gmp: the interpreter is shutting down, nothing can be waited for");
        return -1;
    }
    G *gp = py_self();
    if (gp == NULL || (PY_MUST_LOOK(gp) && py_greenlet_park() < 0))
        return -1;
    if (w->timeout > 0 && w->deadline == 0) {
        int64_t now = nanotime();
        w->deadline = w->timeout > INT64_MAX - now ? INT64_MAX : now + w->timeout;
    }
    return 0;
}

static int
verify_deadlock(void)
{
    if (deadlock_check == NULL)
        return 1;
    PyObject *message = PyObject_CallNoArgs(deadlock_check);
    if (message == NULL)
        return -1;
    if (message != Py_None) {
        PyErr_SetObject(DeadlockError, message);
        Py_DECREF(message);
        return -1;
    }
    Py_DECREF(message);
    int64_t after = atomic_load_relaxed(&recheck_after);
    after = after == 0 ? FIRST_RECHECK_NS : after * 2;
    if (after > LAST_RECHECK_NS)
        after = LAST_RECHECK_NS;
    atomic_store_relaxed(&next_check, nanotime() + after);
    atomic_store(&recheck_after, after);
    return 1;
}

/* 1: wait again, with w->timeout what is left; 0: report the code; -1: an exception is set. */
int
py_wait_again(PyWait *w, int code)
{
    int r;
    if (code == GMP_EINTR)
        r = PyErr_CheckSignals() < 0 ? -1 : 1;
    else if (code == GMP_EDEADLK && !w->looked) { /* a signal may have come with the last one that fell asleep */
        w->looked = true;
        r = PyErr_CheckSignals() < 0 ? -1 : 1;
    }
    else if (code == GMP_EDEADLK) {
        w->looked = false;
        r = verify_deadlock();
    }
    else
        return 0;
    if (r == 1 && w->timeout > 0) {
        int64_t left = w->deadline - nanotime();
        w->timeout = left > 0 ? left : 0;
    }
    return r;
}

void
py_raise_code(int code, const char *what, PyWait *w)
{
    PyObject *type = PyExc_RuntimeError;
    switch (code) {
    case GMP_ETIMEDOUT:
        if (w != NULL && w->deadline == 0)
            PyErr_Format(PyExc_TimeoutError, "%s would have to wait", what);
        else
            PyErr_Format(PyExc_TimeoutError, "%s: the time is up", what);
        return;
    case GMP_ENOMEM:
    case GMP_EAGAIN:
        type = PyExc_MemoryError;
        break;
    case GMP_EINVAL:
        type = PyExc_ValueError;
        break;
    }
    PyErr_Format(type, "%s: %s", what, gmp_strerror(code));
}

/* Class.idle: any M, no GIL. */
int64_t
py_idle(Sched *sched)
{
    (void)sched;
    if (py_main == NULL || py_stopped || atomic_load(&py_served) != 0)
        return 0;
    int64_t after = atomic_load(&recheck_after);
    if (after != 0) {
        int64_t now = nanotime(), next = atomic_load_relaxed(&next_check);
        if (next > now)
            return next - now;
    }
    goready_interrupt(&py_main->g, GMP_EDEADLK);
    return 0;
}

static PyObject *
py_set_deadlock_check(PyObject *module, PyObject *arg)
{
    Py_XSETREF(deadlock_check, Py_NewRef(arg));
    Py_RETURN_NONE;
}

static PyObject *
py_thread_count(PyObject *module, PyObject *unused)
{
    return PyLong_FromLong(sys_thread_count());
}

/* (idents of the threads whose goroutine is parked in gmp, number of the core's own threads) */
static PyObject *
py_known_threads(PyObject *module, PyObject *unused)
{
    PyObject *idents = PySet_New(NULL);
    long own = 1; /* sysmon */
    for (M *mp = atomic_load(&allm); mp != NULL && idents != NULL; mp = mp->alllink) {
        if (atomic_load_relaxed(&mp->dead))
            continue;
        if (mp->ispool) {
            own++;
        }
        else if (mp->thread_g != NULL && atomic_load(&mp->thread_g->status) == G_WAITING) {
            PyObject *id = PyLong_FromUnsignedLongLong(mp->tid);
            if (id == NULL || PySet_Add(idents, id) < 0)
                Py_CLEAR(idents);
            Py_XDECREF(id);
        }
    }
    return idents == NULL ? NULL : Py_BuildValue("(Nl)", idents, own);
}

PyMethodDef wait_methods[] = {
    {"_set_deadlock_check", py_set_deadlock_check, METH_O, NULL},
    {"_thread_count", py_thread_count, METH_NOARGS, NULL},
    {"_known_threads", py_known_threads, METH_NOARGS, NULL},
    {0},
};

int
wait_init(PyObject *module)
{
    DeadlockError = PyErr_NewExceptionWithDoc(
        "gmp.Deadlock",
        "All goroutines are asleep and nothing can wake one: raised in the main goroutine.  Go: the fatal error\n"
        "\"all goroutines are asleep - deadlock!\".",
        PyExc_RuntimeError, NULL);
    return DeadlockError == NULL ? -1 : PyModule_AddObjectRef(module, "Deadlock", DeadlockError);
}
