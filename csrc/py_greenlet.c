/* py_greenlet.c: goroutines that must not leave their thread now: they are inside a greenlet, a callback from C, or an import.
 *
 * A callback (sqlite3, ctypes, Cython's "with gil": all by PyGILState_Ensure) has C frames below that may hold what belongs to the
 * thread: while sqlite runs a statement it holds the connection's mutex, and another thread that asks it for the name of a
 * column waits for that for ever, with the GIL.  Python's locks of modules go by thread id: a module whose body parks would be
 * seen half made by the next goroutine of that thread, and be unlocked by the wrong one.  So a goroutine that parks in one of
 * these locks itself to the thread, until it parks outside of all.
 *
 * greenlet (SQLAlchemy's asyncio bridge, Playwright, gevent) keeps for each OS thread which greenlet is current and which one is
 * the thread's main one, and switches by copying parts of the current C stack to the heap and back.  It knows nothing of
 * goroutines, which share a thread and move between threads.  Two of them with greenlets on one thread would copy parts of
 * their stacks over each other.  Hence the invariant:
 *
 *   A goroutine begins and goes on only on threads whose greenlet state is clean or its own: no greenlet but the main one.
 *
 * Before each park, and at the end, the goroutine looks at the thread's greenlet state.  Clean: it may leave the thread to others
 * and go on elsewhere.  In use: the goroutine locks itself to the thread (lockosthread), until a later look finds the state
 * clean; a thread whose goroutine ends and leaves greenlets behind ends too, and greenlet then takes them for what they
 * are, greenlets of a dead thread.  The main thread cannot end, so from the first such goroutine on it runs none but its own;
 * should that first one be there, it keeps the thread, and the main goroutine goes on on another one until it has ended, or for
 * good if it leaves greenlets behind.
 *
 * In use means: the current greenlet is not the main one; or somebody holds the main one, as each greenlet of the thread does
 * (as parent, and once started in a field of its own); or has a weak reference to it, an attribute on it, or a trace
 * function.  greenlet's own thread state holds it twice.  All this by greenlet's C interface; should another version hold it
 * more often, goroutines would be locked for nothing.
 *
 * Rejected: moving greenlet's thread state along with the goroutine, which would make greenlets as cheap as goroutines.  It
 * is one thread-local word of that library, which has no name and no function to set it.
 */
#include "py_gmp.h"

/* greenlet.h, which need not be installed: its object, and places in its table of functions. */
typedef struct PyGreenlet {
    PyObject_HEAD
    PyObject *weakreflist;
    PyObject *dict;
    void *pimpl;
} PyGreenlet;
enum { API_GETCURRENT = 4, API_MAIN = 8 };

static PyGreenlet *(*greenlet_getcurrent)(void); /* NULL until greenlet is imported */
static int (*greenlet_main)(PyGreenlet *);
static PyObject *greenlet_gettrace; /* a builtin function */

#define OWN_REFERENCES 2 /* that greenlet's thread state holds to its main greenlet, while that is the current one */

/* ---- is greenlet imported? ---- */

static PyObject *modules; /* sys.modules */

#if PY_VERSION_HEX < 0x030C0000
uint64_t py_modules_seen; /* 3.11 has no dict watchers, but a version tag */
uint64_t *py_modules_tag;

static int
watch_modules(void)
{
    py_modules_tag = &((PyDictObject *)modules)->ma_version_tag;
    py_modules_seen = *py_modules_tag - 1;
    return 0;
}

static void
modules_looked_at(bool found)
{
    static uint64_t never = 1;
    if (found) {
        py_modules_tag = &never;
        py_modules_seen = 0;
    }
    else {
        py_modules_seen = *py_modules_tag;
    }
}
#else
bool py_modules_changed = true;
static int watcher;

static int
modules_watcher(PyDict_WatchEvent event, PyObject *dict, PyObject *key, PyObject *value)
{
    (void)event, (void)dict, (void)key, (void)value;
    py_modules_changed = true;
    return 0;
}

static int
watch_modules(void)
{
    watcher = PyDict_AddWatcher(modules_watcher);
    return watcher < 0 ? -1 : PyDict_Watch(watcher, modules);
}

static void
modules_looked_at(bool found)
{
    py_modules_changed = found;
    if (found && PyDict_Unwatch(watcher, modules) < 0)
        PyErr_Clear();
}
#endif

/* Looks for greenlet among the modules.  It counts from when its C part is there, which is before anybody can use it. */
static bool
find_greenlet(void)
{
    PyObject *module = PyDict_GetItemString(modules, "greenlet._greenlet");
    PyObject *capsule = module != NULL ? PyObject_GetAttrString(module, "_C_API") : NULL;
    PyObject *gettrace = capsule != NULL ? PyObject_GetAttrString(module, "gettrace") : NULL;
    void **api = capsule != NULL ? PyCapsule_GetPointer(capsule, "greenlet._C_API") : NULL;
    bool found = api != NULL && gettrace != NULL && PyCFunction_Check(gettrace) &&
                 PyCFunction_GET_FLAGS(gettrace) == METH_NOARGS;
    if (found) {
        greenlet_gettrace = Py_NewRef(gettrace);
        greenlet_main = (int (*)(PyGreenlet *))(uintptr_t)api[API_MAIN];
        greenlet_getcurrent = (PyGreenlet * (*)(void))(uintptr_t)api[API_GETCURRENT];
    }
    Py_XDECREF(gettrace);
    Py_XDECREF(capsule);
    PyErr_Clear();
    modules_looked_at(found);
    return found;
}

/* ---- the look at the thread ---- */

/* Is nothing but greenlet's own thread state interested in this main greenlet?  Then it is also the current one. */
static inline bool
unused(PyGreenlet *main)
{
    if (Py_REFCNT(main) != OWN_REFERENCES || main->weakreflist != NULL)
        return false;
    if (main->dict != NULL && PyDict_GET_SIZE(main->dict) != 0)
        return false;
    PyObject *trace = PyCFunction_GET_FUNCTION(greenlet_gettrace)(PyCFunction_GET_SELF(greenlet_gettrace), NULL);
    Py_XDECREF(trace);
    return trace == Py_None;
}

/* Is a greenlet of this thread in use?  When in doubt (greenlet is shutting down) yes.  May run Python code: greenlet drops what
 * other threads left for it to drop. */
static bool
greenlet_in_use(void)
{
    for (;;) {
        M *mp = getm();
        if (mp->local != NULL)
            return !unused(mp->local);
        PyGreenlet *current = greenlet_getcurrent();
        if (current == NULL) {
            PyErr_Clear();
            return true;
        }
        bool used = !greenlet_main(current);
        if (!used && getm() == mp)
            mp->local = current; /* greenlet keeps it as long as the thread lives */
        Py_DECREF(current);
        if (getm() == mp) /* else that Python code has parked: look at the thread where it is now */
            return used || !unused(mp->local);
    }
}

/* ---- imports ---- */

PyObject *py_module_locks; /* importlib's: name -> weak reference to the lock of a module that is being imported */
static PyObject *owner_name;

/* Has this thread, which is then the goroutine's own, locked a module? */
static bool
importing(void)
{
    PyObject *name, *ref;
    Py_ssize_t pos = 0;
    bool mine = false;
    if (PyDict_GET_SIZE(py_module_locks) == 0)
        return false;
    while (!mine && PyDict_Next(py_module_locks, &pos, &name, &ref)) {
        if (!PyWeakref_Check(ref))
            continue;
#if PY_VERSION_HEX >= 0x030D0000
        PyObject *lock = NULL;
        if (PyWeakref_GetRef(ref, &lock) < 0)
            PyErr_Clear();
#else
        PyObject *lock = PyWeakref_GET_OBJECT(ref);
        lock = lock == Py_None ? NULL : Py_NewRef(lock);
#endif
        PyObject *owner = lock != NULL ? PyObject_GetAttr(lock, owner_name) : NULL;
        mine = owner != NULL && PyLong_Check(owner) && PyLong_AsUnsignedLong(owner) == PyThread_get_thread_ident();
        PyErr_Clear();
        Py_XDECREF(owner);
        Py_XDECREF(lock);
    }
    return mine;
}

static int
imports_init(void)
{
    PyObject *bootstrap = PyImport_ImportModule("_frozen_importlib");
    PyObject *locks = bootstrap != NULL ? PyObject_GetAttrString(bootstrap, "_module_locks") : NULL;
    PyErr_Clear();
    Py_XDECREF(bootstrap);
    owner_name = PyUnicode_InternFromString("owner");
    py_module_locks = locks != NULL && PyDict_CheckExact(locks) ? locks : PyDict_New();
    return py_module_locks == NULL || owner_name == NULL ? -1 : 0;
}

static int
look(bool *used)
{
    bool greenlets = PY_GREENLETS() && (greenlet_getcurrent != NULL || find_greenlet()) && greenlet_in_use();
    G *gp = getg();
    *used = greenlets || tstate_in_callback((PyG *)gp) || (PY_MAY_MOVE(gp) && importing());
    if (GMP_LIKELY(*used == (gp->lockedint != 0)))
        return 0;
    if (!*used) {
        unlockosthread(true);
        return 0;
    }
    if (greenlets && gp->stack_lo != NULL && !SCHED->mainpicky)
        main_keeps_thread(SCHED);
    return lockosthread(true);
}

int
py_greenlet_park(void)
{
    bool used;
    if (look(&used) == 0)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "gmp: a goroutine cannot wait inside a greenlet or a callback on a thread that "
                                        "is not the runtime's own, where it runs "
                                        "because no other thread could be started");
    return -1;
}

void
py_greenlet_end(void)
{
    bool used;
    look(&used);
}

int
greenlet_init(void)
{
    modules = Py_XNewRef(PySys_GetObject("modules"));
    if (modules == NULL || !PyDict_Check(modules)) {
        PyErr_SetString(PyExc_ImportError, "gmp: sys.modules is no dict");
        return -1;
    }
    return imports_init() < 0 ? -1 : watch_modules();
}
