/* py_net.c: FD: a non-blocking descriptor in the net poller, with reads and writes that park.  gmp/net.py builds on it.
 *
 * The descriptor is closed when the last operation on it has ended: close() evicts, which wakes those who wait, and whoever
 * leaves last unregisters and closes.  So no operation ever meets a reused descriptor number.
 * System calls on non-blocking descriptors are short and keep the GIL: dropping and taking it would cost more.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* accept4 */
#endif
#include "py_gmp.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "netpoll.h"

typedef struct PyFD {
    PyObject_HEAD
    PollDesc *pd; /* NULL: closed for good */
    int fd;
    uint32_t users;      /* operations under way */
    uint32_t generation; /* netpoll_generation of pd */
    bool closing;
    bool waiting[2]; /* a goroutine is in netpoll_wait, until it has run again: PollMode */
    bool socket;
    bool stream;
    bool tcp;     /* a short read has emptied it (a Unix socket's stops behind descriptors, too) */
    bool drained; /* by the last read: the next one waits for an edge first */
    bool bulk;    /* the last read brought much: the next one goes straight into the object it returns */
    bool keep;    /* do not close the descriptor: it is somebody else's */
    PyObject *weakrefs;
} PyFD;

#define READ_MAX (64 * 1024) /* stays below malloc's mmap threshold */
#define READ_BULK (16 * 1024)

#if PY_VERSION_HEX < 0x030D0000
#define PyLong_AsInt _PyLong_AsInt
#endif

static PyObject *
raise_errno(int err)
{
    errno = err;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *
raise_closed(void)
{
    PyObject *args = Py_BuildValue("(is)", EBADF, "use of a closed connection");
    if (args != NULL)
        PyErr_SetObject(PyExc_OSError, args);
    Py_XDECREF(args);
    return NULL;
}

static void
fd_finish(PyFD *self)
{
    PollDesc *pd = self->pd;
    self->pd = NULL;
    bool ours = true;
    if (self->generation == netpoll_generation)
        ours = netpoll_close(pd);
    if (!self->keep && ours)
        close(self->fd);
    self->fd = -1;
}

/* In the child of a fork: those who used it are gone, and the child's poller does not know it yet. */
static bool
fd_renew(PyFD *self)
{
    PollDesc *pd;
    int err = netpoll_open(SCHED, self->fd, &pd);
    if (err != 0) {
        raise_errno(err);
        return false;
    }
    self->pd = pd;
    self->generation = netpoll_generation;
    self->users = 0;
    self->waiting[POLL_READ] = self->waiting[POLL_WRITE] = false;
    self->drained = false;
    return true;
}

static bool
fd_enter(PyFD *self)
{
    if (self->closing || self->pd == NULL) {
        raise_closed();
        return false;
    }
    if (GMP_UNLIKELY(self->generation != netpoll_generation) && !fd_renew(self))
        return false;
    self->users++;
    return true;
}

static void
fd_leave(PyFD *self)
{
    if (self->users > 0) /* else a signal handler has forked, and this is the child */
        self->users--;
    if (self->users == 0 && self->closing && self->pd != NULL)
        fd_finish(self);
}

static void
fd_close_now(PyFD *self)
{
    if (self->closing || self->pd == NULL)
        return;
    self->closing = true;
    if (self->generation != netpoll_generation)
        self->users = 0;
    else
        netpoll_evict(self->pd);
    if (self->users == 0)
        fd_finish(self);
}

static int
raise_timeout(PollMode mode)
{
    PyErr_Format(PyExc_TimeoutError, "%s timed out", mode == POLL_READ ? "read" : "write");
    return -1;
}

/* Before the first try: a deadline that has passed holds also when there is data.  0, or -1 with an exception. */
static inline int
fd_prepare(PyFD *self, PollMode mode, PyWait *w)
{
    if (GMP_UNLIKELY(netpoll_expired(self->pd, mode)) && w->timeout < 0)
        return raise_timeout(mode);
    return 0;
}

static bool
fd_ready(PyFD *self, PollMode mode)
{
    struct pollfd pfd = {.fd = self->fd, .events = mode == POLL_READ ? POLLIN : POLLOUT};
    return poll(&pfd, 1, 0) > 0;
}

/* Parks until ready, which an edge tells.  With look it may be so already: another goroutine has used up the edge and left something.
 * Without, the caller's last try has found nothing, and it has kept the GIL since.  w->timeout replaces the side's own deadline for
 * this wait and leaves none behind; negative: it does not.  0, or -1 with an exception. */
static int
fd_wait(PyFD *self, PollMode mode, PyWait *w, bool look)
{
    for (;;) {
        if (py_wait_begin(w) < 0)
            return -1;
        /* A goroutine that is woken, but has not run yet, still owns the state of its side. */
        int code = GMP_ESTATE;
        if (!self->waiting[mode]) {
            self->waiting[mode] = true;
            code = GMP_OK;
            if (w->timeout >= 0)
                code = netpoll_set_deadline(self->pd, mode, w->timeout > 0 ? w->deadline : 1);
            if (code == GMP_OK && !(look && !netpoll_expired(self->pd, mode) && fd_ready(self, mode)))
                code = netpoll_wait(self->pd, mode);
            if (code == GMP_OK && self->closing) /* on the way back; who has detached it owns what came */
                code = GMP_ECLOSED;
            if (w->timeout >= 0)
                netpoll_set_deadline(self->pd, mode, 0);
            self->waiting[mode] = false;
        }
        switch (code) {
        case GMP_OK:
            if (mode == POLL_READ) /* the edge is used up: who comes next must not wait for it */
                self->drained = false;
            return 0;
        case GMP_ECLOSED:
            raise_closed();
            return -1;
        case GMP_ETIMEDOUT:
            return raise_timeout(mode);
        case GMP_ESTATE: {
            PyObject *args = Py_BuildValue("(is)", EBUSY,
                                           mode == POLL_READ ? "another goroutine waits to read from this descriptor"
                                                             : "another goroutine waits to write to this descriptor");
            if (args != NULL)
                PyErr_SetObject(PyExc_OSError, args);
            Py_XDECREF(args);
            return -1;
        }
        default: {
            int again = py_wait_again(w, code);
            if (again == 0)
                py_raise_code(code, "wait for a descriptor", NULL);
            if (again <= 0)
                return -1;
            look = true; /* a signal handler has run: others may have read and written meanwhile */
        }
        }
    }
}

/* Before the first try: parks until it is worth one, when the last read has told that the stream is empty. */
static inline int
fd_prepare_read(PyFD *self, int flags, PyWait *w)
{
    if (fd_prepare(self, POLL_READ, w) < 0)
        return -1;
    if (self->drained && w->timeout != 0 && !(flags & MSG_PEEK) && !netpoll_seen(self->pd, POLL_READ))
        return fd_wait(self, POLL_READ, w, false);
    return 0;
}

/* One try, on a signal another one.  Bytes, or -1 with an exception; -2: there is nothing yet. */
static inline Py_ssize_t
fd_try_read(PyFD *self, char *buf, Py_ssize_t size, int flags)
{
    for (;;) {
        Py_ssize_t n =
            self->socket ? recv(self->fd, buf, (size_t)size, flags | MSG_DONTWAIT) : read(self->fd, buf, (size_t)size);
        if (n >= 0) {
            self->drained = self->tcp && n > 0 && n < size && !(flags & MSG_PEEK);
            return n;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return -2;
        if (errno != EINTR) {
            raise_errno(errno);
            return -1;
        }
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
}

/* One read into buf, parking while there is nothing.  -1 with an exception. */
static Py_ssize_t
fd_read_some(PyFD *self, char *buf, Py_ssize_t size, int flags, PyWait *w)
{
    if (!fd_enter(self))
        return -1;
    Py_ssize_t n = -1;
    if (fd_prepare_read(self, flags, w) == 0)
        while ((n = fd_try_read(self, buf, size, flags)) == -2 && (n = fd_wait(self, POLL_READ, w, false)) == 0)
            ;
    fd_leave(self);
    return n;
}

/* The same into a new bytes object.  No memory is held while the goroutine is parked, and a short read makes a small object: it
 * goes through a buffer that all share, which the GIL guards, as the system call keeps it. */
static PyObject *
fd_read_bytes(PyFD *self, Py_ssize_t size, int flags, PyWait *w)
{
    static char shared[READ_MAX];
    if (!fd_enter(self))
        return NULL;
    PyObject *data = NULL;
    if (fd_prepare_read(self, flags, w) == 0) {
        Py_ssize_t n;
        do {
            if (self->bulk || size > READ_MAX) {
                data = PyBytes_FromStringAndSize(NULL, size);
                if (data == NULL)
                    break;
                n = fd_try_read(self, PyBytes_AS_STRING(data), size, flags);
                if (n < 0)
                    Py_CLEAR(data);
                else if (n != size)
                    _PyBytes_Resize(&data, n);
            }
            else {
                n = fd_try_read(self, shared, size, flags);
                if (n >= 0)
                    data = PyBytes_FromStringAndSize(shared, n);
            }
            if (n >= 0)
                self->bulk = n >= READ_BULK;
        } while (n == -2 && fd_wait(self, POLL_READ, w, false) == 0);
    }
    fd_leave(self);
    return data;
}

/* ---- arguments ---- */

/* size, flags and timeout from args[first] on, each of which may be missing.  0, or -1 with an exception naming it. */
static int
io_args(PyObject *const *args, Py_ssize_t nargs, const char *what, Py_ssize_t *size, int *flags, PyWait *w)
{
    *flags = 0;
    w->timeout = -1;
    if (size != NULL && nargs > 0) {
        if (args[0] != Py_None) {
            if (!PyIndex_Check(args[0])) {
                PyErr_Format(PyExc_TypeError, "%s size must be an int, not %.200s", what, Py_TYPE(args[0])->tp_name);
                return -1;
            }
            *size = PyNumber_AsSsize_t(args[0], PyExc_OverflowError);
            if (*size == -1 && PyErr_Occurred())
                return -1;
            if (*size < 0) {
                PyErr_Format(PyExc_ValueError, "%s size must be 0 or more, not %zd", what, *size);
                return -1;
            }
        }
        args++;
        nargs--;
    }
    if (nargs > 0) {
        if (!PyLong_Check(args[0])) {
            PyErr_Format(PyExc_TypeError, "%s flags must be an int, not %.200s", what, Py_TYPE(args[0])->tp_name);
            return -1;
        }
        *flags = PyLong_AsInt(args[0]);
        if (*flags == -1 && PyErr_Occurred())
            return -1;
    }
    if (nargs > 1)
        return py_timeout(args[1], what, &w->timeout);
    return 0;
}

static int
buffer_arg(PyObject *o, const char *what, int how, Py_buffer *view)
{
    if (!PyObject_CheckBuffer(o)) {
        PyErr_Format(PyExc_TypeError, "%s must be a bytes-like object, not %.200s", what, Py_TYPE(o)->tp_name);
        return -1;
    }
    if (PyObject_GetBuffer(o, view, how) == 0)
        return 0;
    if (how == PyBUF_WRITABLE && PyErr_ExceptionMatches(PyExc_BufferError))
        PyErr_Format(PyExc_TypeError, "%s must be writable, and contiguous; %.200s is not", what, Py_TYPE(o)->tp_name);
    return -1;
}

static int
count_args(Py_ssize_t nargs, Py_ssize_t least, Py_ssize_t most, const char *what)
{
    if (nargs >= least && nargs <= most)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s, %zd arguments were given", what, nargs);
    return -1;
}

/* ---- methods ---- */

static PyObject *
fd_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyFD *self = (PyFD *)op;
    Py_ssize_t size = READ_MAX;
    int flags;
    PyWait w = {0};
    if (count_args(nargs, 0, 3, "read() takes a size, flags and a timeout at most") < 0 ||
        io_args(args, nargs, "read()", &size, &flags, &w) < 0)
        return NULL;
    if (size > READ_MAX && (self->stream || !self->socket)) /* of a datagram the rest would be lost */
        size = READ_MAX;
    if (size == 0 && (self->stream || !self->socket))
        return PyBytes_FromStringAndSize(NULL, 0);
    return fd_read_bytes(self, size, flags, &w);
}

static PyObject *
fd_read_into(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t size = 0;
    int flags;
    PyWait w = {0};
    Py_buffer view;
    if (count_args(nargs, 1, 4, "read_into() takes a buffer, a size, flags and a timeout at most") < 0 ||
        io_args(args + 1, nargs - 1, "read_into()", &size, &flags, &w) < 0 ||
        buffer_arg(args[0], "read_into() buffer", PyBUF_WRITABLE, &view) < 0)
        return NULL;
    if (size == 0 || size > view.len)
        size = view.len;
    Py_ssize_t n = size == 0 ? 0 : fd_read_some((PyFD *)op, view.buf, size, flags, &w);
    PyBuffer_Release(&view);
    return n < 0 ? NULL : PyLong_FromSsize_t(n);
}

/* Writes some; parks while there is no room.  -1 with an exception. */
static Py_ssize_t
fd_write_some(PyFD *self, const char *buf, Py_ssize_t size, int flags, PyWait *w)
{
    for (;;) {
        Py_ssize_t n = self->socket ? send(self->fd, buf, (size_t)size, flags | MSG_NOSIGNAL | MSG_DONTWAIT)
                                    : write(self->fd, buf, (size_t)size);
        if (n >= 0)
            return n;
        if (errno == EINTR) {
            if (PyErr_CheckSignals() < 0)
                return -1;
            continue;
        }
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            raise_errno(errno);
            return -1;
        }
        if (fd_wait(self, POLL_WRITE, w, false) < 0)
            return -1;
    }
}

static PyObject *
fd_write_args(PyObject *op, PyObject *const *args, Py_ssize_t nargs, bool all)
{
    PyFD *self = (PyFD *)op;
    const char *what = all ? "write() data" : "write_part() data";
    int flags;
    PyWait w = {0};
    Py_buffer view;
    if (count_args(nargs, 1, 3,
                   all ? "write() takes data, flags and a timeout" : "write_part() takes data, flags and a timeout") <
            0 ||
        io_args(args + 1, nargs - 1, all ? "write()" : "write_part()", NULL, &flags, &w) < 0 ||
        buffer_arg(args[0], what, PyBUF_SIMPLE, &view) < 0)
        return NULL;
    Py_ssize_t done = -1;
    if (fd_enter(self)) {
        done = fd_prepare(self, POLL_WRITE, &w);
        while (done >= 0) {
            Py_ssize_t n = fd_write_some(self, (const char *)view.buf + done, view.len - done, flags, &w);
            if (n < 0) {
                done = -1;
                break;
            }
            done += n;
            if (!all || done >= view.len)
                break;
        }
        fd_leave(self);
    }
    PyBuffer_Release(&view);
    return done < 0 ? NULL : PyLong_FromSsize_t(done);
}

static PyObject *
fd_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    return fd_write_args(op, args, nargs, true);
}

static PyObject *
fd_write_part(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    return fd_write_args(op, args, nargs, false);
}

#ifdef SOCK_NONBLOCK
static int
accept_nonblock(int fd, struct sockaddr *addr, socklen_t *len)
{
    return accept4(fd, addr, len, SOCK_NONBLOCK | SOCK_CLOEXEC);
}
#else /* macOS */
static int
accept_nonblock(int fd, struct sockaddr *addr, socklen_t *len)
{
    int s = accept(fd, addr, len);
    if (s >= 0 && (fcntl(s, F_SETFD, FD_CLOEXEC) < 0 || fcntl(s, F_SETFL, fcntl(s, F_GETFL) | O_NONBLOCK) < 0)) {
        int err = errno;
        close(s);
        errno = err;
        return -1;
    }
    return s;
}
#endif

/* Go: internal/poll.(*FD).Accept */
static PyObject *
fd_accept(PyObject *op, PyObject *unused)
{
    PyFD *self = (PyFD *)op;
    struct sockaddr_storage addr;
    if (!fd_enter(self))
        return NULL;
    int s = -1;
    socklen_t len = 0;
    PyWait w = {.timeout = -1};
    while (fd_prepare(self, POLL_READ, &w) == 0) {
        len = sizeof addr;
        s = accept_nonblock(self->fd, (struct sockaddr *)&addr, &len);
        if (s >= 0)
            break;
        if (errno == EINTR) {
            if (PyErr_CheckSignals() < 0)
                break;
            continue;
        }
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            raise_errno(errno);
            break;
        }
        if (fd_wait(self, POLL_READ, &w, false) < 0)
            break;
    }
    fd_leave(self);
    if (s < 0)
        return NULL;
    if (len > sizeof addr)
        len = sizeof addr;
    PyObject *r = Py_BuildValue("(iy#)", s, (char *)&addr, (Py_ssize_t)len);
    if (r == NULL)
        close(s);
    return r;
}

static PyObject *
fd_shutdown(PyObject *op, PyObject *arg)
{
    PyFD *self = (PyFD *)op;
    if (!PyLong_Check(arg)) {
        PyErr_Format(PyExc_TypeError, "shutdown() how must be an int, not %.200s", Py_TYPE(arg)->tp_name);
        return NULL;
    }
    int how = PyLong_AsInt(arg);
    if (how == -1 && PyErr_Occurred())
        return NULL;
    if (!fd_enter(self))
        return NULL;
    int err = shutdown(self->fd, how) < 0 ? errno : 0;
    fd_leave(self);
    if (err != 0)
        return raise_errno(err);
    Py_RETURN_NONE;
}

/* The descriptor is the caller's from here on.  Those who wait get OSError. */
static PyObject *
fd_detach(PyObject *op, PyObject *unused)
{
    PyFD *self = (PyFD *)op;
    if (self->closing || self->pd == NULL)
        return raise_closed();
    int fd = self->fd;
    self->keep = true;
    if (self->generation == netpoll_generation) {
        netpoll_evict(self->pd);
        netpoll_forget(self->pd); /* now: when the last waiter leaves, the number may be another one's */
    }
    fd_close_now(self);
    return PyLong_FromLong(fd);
}

static PyObject *
fd_wait_method(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PollMode mode, const char *what)
{
    PyFD *self = (PyFD *)op;
    PyWait w = {.timeout = -1};
    if (count_args(nargs, 0, 1, mode == POLL_READ ? "wait_read() takes a timeout" : "wait_write() takes a timeout") < 0)
        return NULL;
    if (nargs == 1 && py_timeout(args[0], what, &w.timeout) < 0)
        return NULL;
    if (!fd_enter(self))
        return NULL;
    int r;
    if (w.timeout == 0) /* the poller may not have looked yet */
        r = fd_ready(self, mode) ? 0 : raise_timeout(mode);
    else
        r = fd_wait(self, mode, &w, true);
    fd_leave(self);
    if (r < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
fd_wait_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    return fd_wait_method(op, args, nargs, POLL_READ, "wait_read()");
}

static PyObject *
fd_wait_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    return fd_wait_method(op, args, nargs, POLL_WRITE, "wait_write()");
}

/* For calls of other code that use the descriptor and let go of the GIL: until they return, close() leaves it open, so its
 * number cannot become another file's between the moment the call has read it and the moment the kernel does. */
static PyObject *
fd_call(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyFD *self = (PyFD *)op;
    if (count_args(nargs, 1, PY_SSIZE_T_MAX, "call() takes a function and its arguments") < 0)
        return NULL;
    if (!fd_enter(self))
        return NULL;
    PyObject *r = PyObject_Vectorcall(args[0], args + 1, (size_t)(nargs - 1), NULL);
    fd_leave(self);
    return r;
}

static PyObject *
set_deadline(PyObject *op, PyObject *arg, bool rd, bool wr)
{
    PyFD *self = (PyFD *)op;
    int64_t timeout, when = 0;
    if (py_timeout(arg, "set_deadline()", &timeout) < 0)
        return NULL;
    if (!fd_enter(self))
        return NULL;
    if (timeout >= 0) {
        int64_t now = nanotime();
        when = timeout > INT64_MAX - now ? 0 : now + timeout;
    }
    int code = GMP_OK;
    if (rd)
        code = netpoll_set_deadline(self->pd, POLL_READ, when);
    if (wr && code == GMP_OK)
        code = netpoll_set_deadline(self->pd, POLL_WRITE, when);
    fd_leave(self);
    if (code == GMP_ECLOSED)
        return raise_closed();
    if (code != GMP_OK) {
        py_raise_code(code, "set_deadline()", NULL);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
fd_set_deadline(PyObject *op, PyObject *arg)
{
    return set_deadline(op, arg, true, true);
}

static PyObject *
fd_set_read_deadline(PyObject *op, PyObject *arg)
{
    return set_deadline(op, arg, true, false);
}

static PyObject *
fd_set_write_deadline(PyObject *op, PyObject *arg)
{
    return set_deadline(op, arg, false, true);
}

static PyObject *
fd_close(PyObject *op, PyObject *unused)
{
    fd_close_now((PyFD *)op);
    Py_RETURN_NONE;
}

static PyObject *
fd_fileno(PyObject *op, PyObject *unused)
{
    PyFD *self = (PyFD *)op;
    return PyLong_FromLong(self->closing ? -1 : self->fd);
}

static PyObject *
fd_get_closed(PyObject *op, void *closure)
{
    PyFD *self = (PyFD *)op;
    return PyBool_FromLong(self->closing || self->pd == NULL);
}

static PyObject *
fd_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"fileno", "keep", NULL};
    int fd, keep = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|p:FD", keywords, &fd, &keep))
        return NULL;
    struct stat st;
    if (fd < 0)
        return raise_errno(EBADF);
    if (fstat(fd, &st) < 0)
        return raise_errno(errno);
    PollDesc *pd;
    int err = netpoll_open(SCHED, fd, &pd);
    if (err != 0)
        return raise_errno(err);
    PyFD *self = (PyFD *)type->tp_alloc(type, 0);
    if (self == NULL) {
        netpoll_evict(pd);
        netpoll_close(pd);
        return NULL;
    }
    self->pd = pd;
    self->generation = netpoll_generation;
    self->fd = fd;
    self->keep = keep;
    self->socket = S_ISSOCK(st.st_mode);
    int kind = 0;
    socklen_t len = sizeof kind;
    self->stream = self->socket && getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &len) == 0 && kind == SOCK_STREAM;
    struct sockaddr_storage name;
    len = sizeof name;
    self->tcp = self->stream && getsockname(fd, (struct sockaddr *)&name, &len) == 0 &&
                (name.ss_family == AF_INET || name.ss_family == AF_INET6);
    return (PyObject *)self;
}

static void
fd_dealloc(PyObject *op)
{
    PyFD *self = (PyFD *)op;
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs(op);
    fd_close_now(self);
    Py_TYPE(op)->tp_free(op);
}

static PyMethodDef fd_methods[] = {
    {"read", (PyCFunction)(void (*)(void))fd_read, METH_FASTCALL,
     PyDoc_STR(
         "read($self, size=65536, flags=0, timeout=None, /)\n--\n\n"
         "Read what is there, at least one byte and at most size (and 64 KiB), parking while there is nothing.\n\n"
         "b\"\" at the end.  flags: those of recv(2).  timeout: seconds, for this call, instead of the deadline.\n"
         "Raises TimeoutError at the deadline, OSError with its errno: ECONNRESET when the other end has reset the\n"
         "connection, EBADF when this end is closed, EBUSY when another goroutine waits to read.")},
    {"read_into", (PyCFunction)(void (*)(void))fd_read_into, METH_FASTCALL,
     PyDoc_STR("read_into($self, buffer, size=0, flags=0, timeout=None, /)\n--\n\n"
               "As read(), but into a writable buffer, at most size bytes (0: its length); returns their number.\n\n"
               "More than 64 KiB at a time are possible.")},
    {"write", (PyCFunction)(void (*)(void))fd_write, METH_FASTCALL,
     PyDoc_STR(
         "write($self, data, flags=0, timeout=None, /)\n--\n\n"
         "Write all of a bytes-like object, parking while there is no room; returns its length.\n\n"
         "flags: those of send(2).  timeout: seconds, for this call, instead of the deadline.  Raises TimeoutError at\n"
         "the deadline (part of it may have been written), OSError with its errno: EPIPE or ECONNRESET when the other\n"
         "end is gone, EBADF when this end is closed, EBUSY when another goroutine waits to write.")},
    {"write_part", (PyCFunction)(void (*)(void))fd_write_part, METH_FASTCALL,
     PyDoc_STR("write_part($self, data, flags=0, timeout=None, /)\n--\n\n"
               "Write some of data, parking while there is no room; returns how much.  Otherwise as write().")},
    {"wait_read", (PyCFunction)(void (*)(void))fd_wait_read, METH_FASTCALL,
     PyDoc_STR("wait_read($self, timeout=None, /)\n--\n\nPark until a read is worth a try.")},
    {"wait_write", (PyCFunction)(void (*)(void))fd_wait_write, METH_FASTCALL,
     PyDoc_STR("wait_write($self, timeout=None, /)\n--\n\nPark until a write is worth a try.")},
    {"call", (PyCFunction)(void (*)(void))fd_call, METH_FASTCALL,
     PyDoc_STR("call($self, fn, /, *args)\n--\n\nfn(*args); a close() meanwhile closes the descriptor when it has "
               "returned.")},
    {"accept", fd_accept, METH_NOARGS,
     PyDoc_STR(
         "accept($self, /)\n--\n\nPark until a connection comes in; returns its descriptor, non-blocking, and the\n"
         "other end's struct sockaddr.  Raises OSError, TimeoutError at the read deadline.")},
    {"shutdown", fd_shutdown, METH_O,
     PyDoc_STR(
         "shutdown($self, how, /)\n--\n\nEnd one or both directions of a socket: socket.SHUT_RD, SHUT_WR, SHUT_RDWR.")},
    {"detach", fd_detach, METH_NOARGS,
     PyDoc_STR("detach($self, /)\n--\n\nAs close(), but the descriptor stays open; returns it.")},
    {"set_deadline", fd_set_deadline, METH_O,
     PyDoc_STR("set_deadline($self, seconds, /)\n--\n\nReads and writes raise TimeoutError from then on, waiting ones "
               "included.\n\n"
               "seconds from now; None: never.  Go: net.Conn.SetDeadline.")},
    {"set_read_deadline", fd_set_read_deadline, METH_O,
     PyDoc_STR("set_read_deadline($self, seconds, /)\n--\n\nFor reads only.")},
    {"set_write_deadline", fd_set_write_deadline, METH_O,
     PyDoc_STR("set_write_deadline($self, seconds, /)\n--\n\nFor writes only.")},
    {"close", fd_close, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nClose it; those who wait on it get OSError.  Again: nothing.")},
    {"fileno", fd_fileno, METH_NOARGS, PyDoc_STR("fileno($self, /)\n--\n\nThe descriptor; -1 when closed.")},
    {0},
};
static PyGetSetDef fd_getset[] = {
    {"closed", fd_get_closed, NULL, PyDoc_STR("True after close()."), NULL},
    {0},
};
static PyTypeObject FD_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gmp._core.FD",
    .tp_doc = PyDoc_STR(
        "FD(fileno, keep=False)\n--\n\nA non-blocking descriptor in the net poller; close() and the end of the object\n"
        "close it, unless keep.  Go: internal/poll.FD."),
    .tp_basicsize = sizeof(PyFD),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = fd_new,
    .tp_dealloc = fd_dealloc,
    .tp_methods = fd_methods,
    .tp_getset = fd_getset,
    .tp_weaklistoffset = offsetof(PyFD, weakrefs),
};

int
net_module_init(PyObject *module)
{
    if (PyType_Ready(&FD_Type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "FD", (PyObject *)&FD_Type);
}
