/* errors.h: the result codes of the core: 0 or a negative GMP_E... */
#ifndef GMP_ERRORS_H
#define GMP_ERRORS_H

enum {
    GMP_OK = 0,
    GMP_EINVAL = -1,    /* an argument is out of range */
    GMP_ENOMEM = -2,    /* memory was refused */
    GMP_EAGAIN = -3,    /* the system has no thread or no map left */
    GMP_ETIMEDOUT = -4, /* the timeout passed; with timeout 0: it would have blocked */
    GMP_ECLOSED = -5,   /* send on, or close of, a closed channel; receive from a closed and drained one */
    GMP_ESHUTDOWN = -6, /* the runtime has stopped */
    GMP_EDEADLK = -7,   /* all goroutines are asleep */
    GMP_EINTR = -8,     /* the wait was interrupted: the main goroutine has a signal to handle */
    GMP_ESTATE = -9,    /* unlock of an unlocked mutex, negative WaitGroup counter ... */
};

const char *gmp_strerror(int code);

#endif
