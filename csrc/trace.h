/* trace.h: what the runtime tells about itself without being asked by the program: GMPDEBUG, schedtrace, text for dumps. */
#ifndef GMP_TRACE_H
#define GMP_TRACE_H

#include "runtime.h"

/* ---- GMPDEBUG=key=value,... ---- */
typedef struct DebugVars {
    int64_t schedtrace; /* ns between two lines of schedtrace, or 0 */
    bool scheddetail;   /* with a line for each P, M and G */
    bool sigquit;       /* SIGQUIT prints all goroutine stacks */
} DebugVars;
extern DebugVars debugvars;
void debug_init(void); /* reads the environment, once; what is wrong there costs one warning and is ignored */

/* ---- schedtrace ---- */
/* Prints to stderr what is due.  Returns the ns until the next time, or -1.  sysmon only.  Go: runtime.schedtrace */
int64_t schedtrace(int64_t now);

/* ---- how long a goroutine has been waiting ---- */
/* Whole minutes since a parked goroutine parked, 0 for any other.  Any thread. */
uint32_t minutes_waited(G *gp);
void add_to_waits(uint32_t seconds); /* for tests: as if this much more time had passed */

/* ---- text without allocation: any thread, signal handlers, a broken interpreter ---- */
typedef struct Out {
    int fd;
    uint32_t n;
    char buf[1024];
} Out;
void out_char(Out *o, char c);
void out_str(Out *o, const char *s);
void out_int(Out *o, int64_t n);
void out_hex(Out *o, uint64_t n, int digits);
void out_flush(Out *o); /* also done whenever buf is full */

#endif
