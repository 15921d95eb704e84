/* py_time.c: the timers of gmp.time: those that send the time to a channel, and those that start a goroutine.
 *
 * A timer fires in the scheduler, without the GIL and perhaps on a thread that never had it.
 *
 * Channel timers (ChanTimer) belong to their channel, and nothing holds the channel: when it goes, so does the timer, armed or
 * not, as in Go from 1.23 on.  Firing is a send that does not wait, of a word that is no object (is_time).  The channel has a
 * buffer of one that its users do not see; stop and reset take an unreceived time out of it, so no stale one is ever received.
 *
 * Function timers (FuncTimer) are held by a reference of their own while they are armed: they have to fire.
 *   1. Firing: state ARMED -> DUE; the timer goes to the list `due`, unless it is still there, and due_chan gets a word.
 *   2. The dispatcher, a goroutine of the runtime's own (gmp/time.py), takes the list with the GIL: DUE -> IDLE means: run it.
 *      Whoever finds a timer off the list and IDLE drops its reference.
 *   3. stop and reset, with the GIL, end the firing first (timer_stop), then exchange the state; what was not IDLE was pending.
 *   All but firing has the GIL.
 * Rejected: a goroutine for each timer (4 KiB instead of 0.2), starting the goroutine where the timer fires (it needs a G, and
 * making one needs the GIL).
 */
#include "py_gmp.h"

/* ---- channel timers ---- */

typedef struct ChanTimer {
    Timer t;
    Hchan *c;
    int64_t period; /* ns, 0: once; changes only while the timer is stopped */
} ChanTimer;

PyObject *
py_time_value(PyObject *v)
{
    return PyFloat_FromDouble((double)((uintptr_t)v >> 1) / 1e9);
}

static uintptr_t
time_word(void)
{
    return (uintptr_t)walltime() << 1 | 1;
}

/* In the scheduler, no lock, no GIL.  Go: time.sendTime */
static void
fire_chan(void *arg, uint32_t seq)
{
    ChanTimer *ct = arg;
    uintptr_t word = time_word();
    (void)seq;
    chansend(ct->c, &word, 0); /* dropped when the last one was not received yet */
    if (ct->period == 0)
        return;
    int64_t late = nanotime() - ct->t.when;
    int64_t next = ct->t.when + ct->period * (1 + (late > 0 ? late / ct->period : 0));
    (void)timer_add(ct->t.heap, &ct->t, next, fire_chan, ct, 0); /* into the room that it has just left */
}

void
py_time_free(ChanTimer *ct)
{
    if (ct == NULL)
        return;
    timer_stop(&ct->t);
    PyMem_Free(ct);
}

static PyObject *
py_timer_chan(PyObject *module, PyObject *unused)
{
    PyChan *ch = (PyChan *)py_chan_new(1);
    if (ch == NULL)
        return NULL;
    ch->timer = PyMem_Calloc(1, sizeof *ch->timer);
    if (ch->timer == NULL) {
        Py_DECREF(ch);
        return PyErr_NoMemory();
    }
    ch->timer->c = ch->c;
    ch->timer->t.stoppable = true;
    return (PyObject *)ch;
}

static bool
stop_chan(PyChan *ch)
{
    bool pending = timer_stop(&ch->timer->t);
    PyObject *v;
    while (chanrecv(ch->c, &v, 0) == GMP_OK) {
        pending = true;
        if (!is_time(v))
            Py_DECREF(v);
    }
    return pending;
}

/* ---- function timers ---- */

enum { FT_IDLE, FT_ARMED, FT_DUE };

typedef struct FuncTimer {
    PyObject_HEAD
    Timer t;
    PyObject *call;         /* what the dispatcher gets */
    struct FuncTimer *link; /* due */
    uint32_t state;         /* atomic */
    uint32_t queued;        /* atomic: on the list due */
    bool held;              /* by a reference of its own; GIL */
    uint32_t life;          /* forks survived when it was armed */
} FuncTimer;

static PyTypeObject FuncTimer_Type;
static FuncTimer *due;   /* atomic: a stack */
static PyChan *due_chan; /* a word for the dispatcher; there when a timer is armed */
static bool dispatching; /* the dispatcher was started; GIL, as is the next */
static uint32_t forks;

static bool
have_due_chan(void)
{
    if (due_chan == NULL)
        due_chan = (PyChan *)py_chan_new(1);
    return due_chan != NULL;
}

/* In the scheduler, no lock, no GIL.  Go: time.goFunc */
static void
fire_func(void *arg, uint32_t seq)
{
    FuncTimer *ft = arg;
    (void)seq;
    if (!atomic_cas(&ft->state, (uint32_t)FT_ARMED, (uint32_t)FT_DUE))
        return;
    if (atomic_xchg(&ft->queued, 1u) == 0) {
        FuncTimer *head;
        do {
            head = atomic_load(&due);
            ft->link = head;
        } while (!atomic_cas(&due, head, ft));
    }
    uintptr_t word = time_word();
    chansend(due_chan->c, &word, 0);
}

static void
let_go(FuncTimer *ft)
{
    if (ft->held && atomic_load(&ft->queued) == 0 && atomic_load(&ft->state) == FT_IDLE) {
        ft->held = false;
        Py_DECREF(ft);
    }
}

static bool
stop_func(FuncTimer *ft)
{
    if (ft->life != forks) { /* armed, or even on the list, in the parent */
        ft->life = forks;
        atomic_store(&ft->queued, 0u);
        atomic_store(&ft->state, (uint32_t)FT_IDLE);
    }
    timer_stop(&ft->t);
    return atomic_xchg(&ft->state, (uint32_t)FT_IDLE) != FT_IDLE;
}

static PyObject *
func_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *call;
    if (!PyArg_ParseTuple(args, "O:FuncTimer", &call))
        return NULL;
    FuncTimer *ft = (FuncTimer *)type->tp_alloc(type, 0);
    if (ft == NULL)
        return NULL;
    ft->call = Py_NewRef(call);
    ft->t.stoppable = true;
    ft->life = forks;
    return (PyObject *)ft;
}

static int
func_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((FuncTimer *)self)->call);
    return 0;
}

static int
func_clear(PyObject *self)
{
    Py_CLEAR(((FuncTimer *)self)->call);
    return 0;
}

static void
func_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    timer_stop(&((FuncTimer *)self)->t);
    func_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyTypeObject FuncTimer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp._core.FuncTimer",
    .tp_doc = PyDoc_STR("FuncTimer(call, /)\n--\n\nA timer that hands call to the dispatcher of gmp.time."),
    .tp_basicsize = sizeof(FuncTimer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = func_new,
    .tp_dealloc = func_dealloc,
    .tp_traverse = func_traverse,
    .tp_clear = func_clear,
};

/* ---- for gmp/time.py ---- */

static bool
timer_of(PyObject *o, PyChan **ch, FuncTimer **ft)
{
    *ch = Py_IS_TYPE(o, &Chan_Type) && ((PyChan *)o)->timer != NULL ? (PyChan *)o : NULL;
    *ft = Py_IS_TYPE(o, &FuncTimer_Type) ? (FuncTimer *)o : NULL;
    if (*ch == NULL && *ft == NULL)
        PyErr_Format(PyExc_TypeError, "a timer_chan() or a FuncTimer is needed, not %.200s", Py_TYPE(o)->tp_name);
    return *ch != NULL || *ft != NULL;
}

static PyObject *
py_timer_stop(PyObject *module, PyObject *arg)
{
    PyChan *ch;
    FuncTimer *ft;
    if (!timer_of(arg, &ch, &ft))
        return NULL;
    bool pending = ch != NULL ? stop_chan(ch) : stop_func(ft);
    if (ft != NULL)
        let_go(ft);
    return PyBool_FromLong(pending);
}

static PyObject *
py_timer_start(PyObject *module, PyObject *args)
{
    PyObject *timer, *seconds;
    int repeat;
    const char *what;
    PyChan *ch;
    FuncTimer *ft;
    int64_t after;
    if (!PyArg_ParseTuple(args, "OOps:timer_start", &timer, &seconds, &repeat, &what) || !timer_of(timer, &ch, &ft) ||
        py_seconds(seconds, what, &after) < 0)
        return NULL;
    if (repeat && after == 0) {
        PyErr_Format(PyExc_ValueError, "%s: the time must be more than 0 seconds, not %R", what, seconds);
        return NULL;
    }
    bool pending = ch != NULL ? stop_chan(ch) : stop_func(ft);
    if (ft != NULL && !have_due_chan())
        return NULL;
    int code;
    int64_t now = nanotime(), when = after > INT64_MAX - now ? INT64_MAX : now + after;
    if (ch != NULL) {
        ch->timer->period = repeat ? after : 0;
        code = timer_arm(SCHED, &ch->timer->t, when, fire_chan, ch->timer, 0);
    }
    else {
        if (!ft->held) {
            ft->held = true;
            Py_INCREF(ft);
        }
        atomic_store(&ft->state, (uint32_t)FT_ARMED);
        code = timer_arm(SCHED, &ft->t, when, fire_func, ft, 0);
        if (code < 0) {
            atomic_store(&ft->state, (uint32_t)FT_IDLE);
            let_go(ft);
        }
    }
    if (code < 0) {
        py_raise_code(code, what, NULL);
        return NULL;
    }
    return PyBool_FromLong(pending);
}

static PyObject *
py_take_due(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    FuncTimer *ft = list != NULL ? atomic_xchg(&due, (FuncTimer *)NULL) : NULL, *first = NULL;
    while (ft != NULL) { /* oldest first */
        FuncTimer *next = ft->link;
        ft->link = first;
        first = ft;
        ft = next;
    }
    bool failed = false;
    for (ft = first; ft != NULL; ft = first) {
        first = ft->link;
        atomic_store(&ft->queued, 0u); /* from here on it may fire again, and be put on the list */
        if (atomic_cas(&ft->state, (uint32_t)FT_DUE, (uint32_t)FT_IDLE))
            failed |= PyList_Append(list, ft->call) < 0;
        let_go(ft);
    }
    if (failed)
        Py_CLEAR(list);
    return list;
}

/* The calling goroutine becomes the dispatcher: the channel that wakes it. */
static PyObject *
py_dispatch(PyObject *module, PyObject *unused)
{
    PyG *pg = (PyG *)py_self();
    if (pg == NULL)
        return NULL;
    if (!have_due_chan())
        return NULL;
    if (pg->g.stack_lo == NULL || pg->system) {
        PyErr_SetString(PyExc_RuntimeError, "the dispatcher of gmp.time is a goroutine of its own");
        return NULL;
    }
    pg->system = true;
    SCHED->nsystem++;
    return Py_NewRef((PyObject *)due_chan);
}

static PyObject *
py_set_dispatching(PyObject *module, PyObject *arg)
{
    bool was = dispatching;
    dispatching = arg == Py_True;
    return PyBool_FromLong(was);
}

void
py_time_afterfork_child(void)
{
    forks++;
    due = NULL;
    due_chan = NULL; /* its lock, and who waits for it, are the parent's */
    dispatching = false;
}

PyMethodDef time_methods[] = {
    {"timer_chan", py_timer_chan, METH_NOARGS,
     PyDoc_STR("timer_chan($module, /)\n--\n\nA channel with a timer that sends the time to it.")},
    {"timer_stop", py_timer_stop, METH_O,
     PyDoc_STR("timer_stop($module, timer, /)\n--\n\nStop a timer_chan or a FuncTimer.  Returns whether it was still "
               "to fire, or "
               "what it\nsent was not received.")},
    {"timer_start", py_timer_start, METH_VARARGS,
     PyDoc_STR("timer_start($module, timer, seconds, repeat, what, /)\n--\n\nStop a timer, return what timer_stop "
               "does, and start it "
               "again.\n\nwhat: the caller's name, for messages.")},
    {"_take_due", py_take_due, METH_NOARGS, NULL},
    {"_dispatch", py_dispatch, METH_NOARGS, NULL},
    {"_set_dispatching", py_set_dispatching, METH_O, NULL}, /* returns what it was */
    {0},
};

int
time_module_init(PyObject *module)
{
    if (PyType_Ready(&FuncTimer_Type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "FuncTimer", (PyObject *)&FuncTimer_Type);
}
