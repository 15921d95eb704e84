/* runner.h: what runner.c asks of the system. */
#ifndef GMP_TEST_RUNNER_H
#define GMP_TEST_RUNNER_H

#include "test.h"

#define EXIT_SKIP 77
#define RUN_ONE "--run-one" /* NAME: runs one test in this very process */

typedef struct Ended {
    enum { EXITED, KILLED, TIMED_OUT } how;
    int code; /* exit status, or signal */
} Ended;

double runner_seconds(void);
/* Runs t in a child process; what it writes to stderr goes to err, cut to size.  limit: seconds. */
Ended runner_run(Test *t, char *err, size_t size, double limit);
const char *runner_signal_name(int sig);

#endif
