/* gmp.h: the public C interface of the runtime: goroutines for C, in parallel on all CPUs, as Go's.
 *
 *     static void hello(void *arg) { gmp_chan_send(arg, &(int64_t){42}, sizeof(int64_t), -1); }
 *     int main(void)
 *     {
 *         gmp_chan *ch;
 *         int64_t x;
 *         gmp_chan_new(&ch, sizeof x, 0);
 *         gmp_go(hello, ch, GMP_STACK_64K);
 *         gmp_chan_recv(ch, &x, sizeof x, -1);
 *         return gmp_shutdown(-1);
 *     }
 *
 * Functions return 0 or a negative GMP_E... code, unless their comment says otherwise; on failure nothing has changed.
 * A timeout is the last argument, in ns: negative waits for ever, 0 does not wait (GMP_ETIMEDOUT).
 * Any thread may call any function.  A thread that is no goroutine waits as one, but runs no others while it does: a program
 * that passes much through channels does so in goroutines, and its main waits for them in gmp_shutdown.
 * A goroutine may go on on another thread after each call that can wait: keep no errno and no address of a thread-local
 * variable across one.  It may not touch Python, and may not return to a longjmp or throw an exception across its first function.
 * A goroutine that runs for long, or blocks its thread in a call that this library knows nothing of, loses its P to others
 * after 10 ms, and goes on beside them; gmp_block_enter gives it away at once.
 *
 * GMP_STACK_2K is for leaf functions: 1.7 KiB are theirs, of which a call of this library takes up to 0.9.  No printf, no
 * system call wrappers with buffers.  Link with -Wl,-z,now (the dynamic linker resolves symbols on the caller's stack), and
 * install signal handlers with SA_ONSTACK.  An overflow is looked for at each wait, and ends the process with the
 * function's address.  The other classes are grown by page faults and end in a guard page.
 *
 * Everything between the two cdef lines is also what Python sees as gmp.ffi and gmp.lib: it is handed to cffi as it stands,
 * so it holds plain declarations only, and the preprocessor has no business there.
 */
#ifndef GMP_H
#define GMP_H

#include <stddef.h>
#include <stdint.h>

#define GMP_VERSION "0.1.0" /* the one place where the version stands: setup.py reads it from here */

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default) /* the only symbols that the shared object shows */
#endif
/* cdef begin */
enum {
    GMP_OK = 0,
    GMP_EINVAL = -1,    /* an argument is out of range */
    GMP_ENOMEM = -2,    /* memory was refused */
    GMP_EAGAIN = -3,    /* the system has no thread, map or descriptor left */
    GMP_ETIMEDOUT = -4, /* the timeout passed; with timeout 0: it would have blocked */
    GMP_ECLOSED = -5,   /* send on, or close of, a closed channel; receive from a closed and drained one */
    GMP_ESHUTDOWN = -6, /* the runtime has stopped */
    GMP_EDEADLK = -7,   /* all goroutines are asleep */
    GMP_EINTR = -8,     /* the wait was interrupted: the main goroutine has a signal to handle */
    GMP_ESTATE = -9,    /* unlock of an unlocked mutex, negative WaitGroup counter ... */
    GMP_EIO = -10       /* a system call failed; errno says how */
};

/* ---- the runtime ---- */
const char *gmp_version(void);      /* "0.1.0" */
const char *gmp_strerror(int code); /* one English sentence for a GMP_E... code; never NULL */
int gmp_num_cpu(void);              /* CPUs this process may run on */
int64_t gmp_nanotime(void);         /* the clock of all timers: monotonic, ns */
int64_t gmp_num_goroutine(void);    /* goroutines alive, of both sets */
int gmp_init(int procs); /* 1 to 256 Ps; 0: $GMPMAXPROCS, else CPUs or their quota.  Implied; ESTATE: too late */
int
gmp_shutdown(int64_t timeout); /* waits until all goroutines have ended; until the next gmp_init none can be started */

/* ---- goroutines ---- */
enum { GMP_STACK_2K = 1, GMP_STACK_64K = 2, GMP_STACK_256K = 3 };
typedef void (*gmp_func)(void *arg);
typedef struct gmp_g gmp_g;
int gmp_go(gmp_func fn, void *arg, int stack); /* starts fn(arg) as a goroutine on a stack of that class */
uint64_t gmp_goid(void);        /* number of the calling goroutine or waiting thread, 0 for other threads */
int gmp_yield(void);            /* lets others run */
int gmp_sleep(int64_t ns);      /* not negative */
int gmp_exit(void);             /* ends the calling goroutine: returns only GMP_ESTATE, on a thread that is none */
gmp_g *gmp_self(void);          /* the caller, for gmp_ready, while it lives; NULL: a thread beside Python */
int gmp_park(int64_t timeout);  /* waits for gmp_ready, or returns at once when that was called before */
int gmp_ready(gmp_g *g);        /* ends g's park, or lets its next one return at once */
int gmp_block_enter(void);      /* the caller will block its thread: others run meanwhile */
int gmp_block_exit(void);       /* it blocks no more; waits for its turn */
int gmp_lock_os_thread(void);   /* the caller gets a thread of its own, if need be another, until as many unlocks */
int gmp_unlock_os_thread(void); /* GMP_ESTATE: not locked */
int gmp_local_set(void *value); /* one word that belongs to the calling goroutine; NULL at first */
void *gmp_local_get(void);

/* ---- channels of elements of one size, which each call names again ---- */
typedef struct gmp_chan gmp_chan;
int gmp_chan_new(gmp_chan **out, size_t size, size_t capacity); /* size may be 0, elements NULL then; at most 64 KiB */
int gmp_chan_free(gmp_chan *ch);                                /* GMP_ESTATE: somebody waits on it */
int gmp_chan_send(gmp_chan *ch, const void *elem, size_t size, int64_t timeout); /* GMP_ECLOSED */
int gmp_chan_recv(gmp_chan *ch, void *elem, size_t size,
                  int64_t timeout); /* GMP_ECLOSED: and drained; elem is zeroed */
int gmp_chan_close(gmp_chan *ch);   /* GMP_ECLOSED: twice */
int64_t gmp_chan_len(gmp_chan *ch); /* elements in the buffer */
int64_t gmp_chan_cap(gmp_chan *ch);

typedef struct gmp_case {
    gmp_chan *ch; /* NULL: never ready */
    void *elem;   /* sent from or received to */
    size_t size;
    int send;   /* else receive */
    int result; /* out, of the case that went ahead: 0 or GMP_ECLOSED */
} gmp_case;
int gmp_select(gmp_case *cases, int n, int64_t timeout); /* index of the one case that went ahead, or GMP_E... */

/* ---- locks; they belong to no goroutine: any may unlock.  free: GMP_ESTATE while in use ---- */
typedef struct gmp_mutex gmp_mutex;
int gmp_mutex_new(gmp_mutex **out);
int gmp_mutex_free(gmp_mutex *m);
int gmp_mutex_lock(gmp_mutex *m, int64_t timeout);
int gmp_mutex_unlock(gmp_mutex *m); /* GMP_ESTATE: not locked */

typedef struct gmp_cond gmp_cond;
int gmp_cond_new(gmp_cond **out);
int gmp_cond_free(gmp_cond *c);
int gmp_cond_wait(gmp_cond *c, gmp_mutex *m,
                  int64_t timeout);  /* unlocks m meanwhile, and has it locked again whatever comes */
int gmp_cond_signal(gmp_cond *c);    /* wakes one */
int gmp_cond_broadcast(gmp_cond *c); /* wakes all */

typedef struct gmp_waitgroup gmp_waitgroup;
int gmp_waitgroup_new(gmp_waitgroup **out);
int gmp_waitgroup_free(gmp_waitgroup *wg);
int gmp_waitgroup_add(gmp_waitgroup *wg, int64_t delta);                    /* GMP_ESTATE: it would be negative */
int gmp_waitgroup_done(gmp_waitgroup *wg);                                  /* add(-1) */
int gmp_waitgroup_wait(gmp_waitgroup *wg, int64_t timeout);                 /* until it is 0 */
int gmp_waitgroup_go(gmp_waitgroup *wg, gmp_func fn, void *arg, int stack); /* add(1), gmp_go, done at its end */

/* ---- timers: send the time (int64_t, gmp_nanotime) on a channel, if there is room ---- */
typedef struct gmp_timer gmp_timer;
int gmp_timer_new(gmp_timer **out, gmp_chan *ch);
int gmp_timer_free(gmp_timer *t);
int gmp_timer_start(gmp_timer *t, int64_t delay, int64_t period); /* anew if it runs; period 0: once */
int gmp_timer_stop(gmp_timer *t);                                 /* 1, or 0 when it did not run any more */

/* ---- descriptors: sockets, pipes ... made non-blocking; one reader and one writer at a time, else GMP_ESTATE ---- */
typedef struct gmp_fd gmp_fd;
int gmp_fd_open(gmp_fd **out, int fd);            /* takes fd over; GMP_EIO */
int gmp_fd_close(gmp_fd *f);                      /* its waits end with GMP_ECLOSED; closes fd */
int gmp_fd_number(gmp_fd *f);                     /* fd */
int gmp_fd_wait_read(gmp_fd *f, int64_t timeout); /* until something came since a read last found nothing */
int gmp_fd_wait_write(gmp_fd *f, int64_t timeout);
int64_t gmp_fd_read(gmp_fd *f, void *buf, size_t n, int64_t timeout);        /* bytes, 0 at the end, or GMP_E... */
int64_t gmp_fd_write(gmp_fd *f, const void *buf, size_t n, int64_t timeout); /* all n bytes, or GMP_E... */
int gmp_fd_accept(gmp_fd *f, gmp_fd **out, int64_t timeout);                 /* a connection of a listening socket */

/* ---- Ps and figures ---- */
int gmp_gomaxprocs(int n); /* sets how many Ps there are, and returns how many there were; 0 sets nothing */
typedef struct gmp_stats {
    int64_t goroutines, procs, idle_procs, threads, idle_threads, spinning_threads;
    int64_t queued;                             /* in the global queue */
    int64_t handoffs;                           /* Ps taken from threads that blocked or ran long */
    int64_t stacks_2k, stacks_64k, stacks_256k; /* ever made; they are used again */
    int64_t fd_waiters;                         /* goroutines in gmp_fd_...; of both sets */
} gmp_stats;
int gmp_get_stats(gmp_stats *out, size_t size); /* size: of the caller's gmp_stats */
/* cdef end */
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
