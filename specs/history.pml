/* history.pml -- the log of one user's versions under damage: walk-back, restore, probation, pruning, newer rules.
 *
 * The log is one record a version: a step (what one measurement adds) or an image (the whole state).  A version reads
 * if the newest image at or before it reads, and every step from there on.  The head record caches the log's end.
 * NR processes each plan an operation from what they read, and commit it later if the head is still what they read.
 *
 * Bounds: NV versions, NR processes, FLIPS (records that go bad), RULES (changes of the rules in force), CRASHES;
 * every KEY-th version is an image, VMAX versions are kept, and PASS accepted measurements end a probation.
 */
#ifndef NV
#define NV 5
#endif
#ifndef NR
#define NR 2
#endif
#ifndef FLIPS
#define FLIPS 2
#endif
#ifndef RULES
#define RULES 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef KEY
#define KEY 4
#endif
#ifndef VMAX
#define VMAX 3
#endif
#ifndef PASS
#define PASS 2
#endif

#define ABSENT 0
#define STEP   1
#define IMAGE  2
/* what a process plans */
#define NOTHING_ 0
#define INITIAL  1
#define ACCEPT   2
#define RESET    3
#define REVOKE   4
#define RECOVER  5
#define RESTORE  6

#define W_INITIAL        10
#define W_ACCEPTED       11
#define W_RESET          12
#define W_RESET_AGAIN    13
#define W_PASSED         14
#define W_REVOKED        15
#define W_HEAD_MENDED    16
#define W_WALKED_BACK    17
#define W_NONE_GOOD      18
#define W_RESTORED       19
#define W_RESTORED_GOOD  20
#define W_NOT_SOUND      21
#define W_CONFLICTED     22
#define W_PRUNED         23
#define W_NONCONFORMING  24
#define W_FLIPPED        25
#define W_FLIPPED_HEAD   26
#define W_CRASHED        27

#include "common.pml"

/* [durable] */
byte kind[NV + 1];
byte newest;                   /* the highest version in the log; 0: nothing was ever stored */
byte first;                    /* the lowest */
bit  torn[NV + 1];             /* the record fails its checksum */
bit  head_torn;
byte probation;                /* the version whose reset is under probation, or 0 */
byte passed;                   /* measurements accepted since */
byte pin;                      /* the version whose state is pinned, + 1, or 0 */
byte pin_state, pin_upto;      /* that state, in a record of its own: it is there where the log has lost the version */
bit  took[NV + 1];             /* the version took in a measurement */
byte upto[NV + 1];             /* the version that took in the newest measurement of this one's state */
bit  left[NV + 1];             /* the measurement of this version was put aside again */
byte moved_aside;              /* damaged head records that were kept */
byte state[NV + 1];            /* which state a version holds: the number of the version that made it */
byte breaks;                   /* states whose number is this break the newest rules; 0: none does */
/* [volatile] */
byte plan[NR], target[NR], read_newest[NR], read_aside[NR];
bit  read_torn[NR];
/* [ghost] */
byte given;                    /* the highest version number that was ever given out */
byte torn_heads;               /* damaged head records that were replaced */
byte before;                   /* the version before the reset that began the probation, + 1 */
byte flips, rules, crashes;

hidden byte i, n, good, low, which, was, was_upto;
#define ME PProcess->r
#ifdef EMIT                    /* newer rules come with the opening of a store; what a commit prunes is read when it is planned */
#define NOBODY_PLANS (plan[0] == NOTHING_ && plan[NR - 1] == NOTHING_)
#else
#define NOBODY_PLANS (true)
#endif

#define PASSES(s) (breaks == 0 || s != breaks)
#define SOUND(v)  PASSES(state[v])

inline CHECK() {
  /* INV-05: the log begins with an image and has no gaps. */
  assert(newest == 0 || kind[first] == IMAGE);
  i = 1;
  do
  :: i <= NV -> assert((kind[i] != ABSENT) == (newest != 0 && i >= first && i <= newest)); i++
  :: else -> break
  od;
  /* INV-05: a version number is given out once. */
  assert(newest == given);
  /* INV-01: what could not be read is kept for whoever looks into it. */
  assert(moved_aside == torn_heads);
  /* INV-04: during probation the before-image stays that of the reset that began it. */
  assert((probation != 0) == (pin != 0) && pin == before);
  i = 0; n = 0; good = 0; low = 0; was = 0; was_upto = 0
}

/* n: the record at which reading version `from` ends, which is an image that is not torn where the version reads. */
inline FOLD(from) {
  n = from;
  do
  :: kind[n] == STEP && !torn[n] && n > first -> n--
  :: else -> break
  od
}
/* good: the newest version at or below `from` that reads and passes the rules in force, or 0. */
inline NEWEST_GOOD(from) {
  good = 0; i = from;
  do
  :: i >= first && i > 0 && good == 0 ->
     FOLD(i);
     if
#ifdef M_WALK_BACK_UNVALIDATED
     :: kind[n] == IMAGE && !torn[n] -> good = i
#else
     :: kind[n] == IMAGE && !torn[n] && SOUND(i) -> good = i
#endif
     :: else
     fi;
     i--
  :: else -> break
  od
}

#define HEAD_READS (newest != 0 && !head_torn)

/* What one process reads before it decides; nothing is durable yet. */
inline PLAN(r, what, at) { plan[r] = what; target[r] = at; read_newest[r] = newest; read_torn[r] = head_torn; read_aside[r] = moved_aside }
inline DONE(r) { plan[r] = NOTHING_; target[r] = 0; read_newest[r] = 0; read_torn[r] = 0; read_aside[r] = 0 }

/* Parts of one transaction. */
inline APPEND(k, holds, takes) {   /* it holds a state of its own, or with `holds` the state `was` */
#ifdef M_REUSE_VERSION
  if :: good != 0 && good < newest -> n = good + 1 :: else -> n = newest + 1 fi;
#else
  n = newest + 1;
#endif
  kind[n] = k; torn[n] = 0; left[n] = 0; took[n] = takes;
  if
  :: holds == 0 -> state[n] = n; if :: takes -> upto[n] = n :: else -> upto[n] = upto[newest] fi
  :: else -> state[n] = was; upto[n] = was_upto
  fi;
  if :: newest == 0 -> first = 1 :: else fi;
  given++; newest = n;
  if :: head_torn ->
        torn_heads++; head_torn = 0;
#ifndef M_OVERWRITE_DAMAGE
        moved_aside++;
#endif
        skip
  :: else fi;
  if :: k == IMAGE -> PRUNE() :: else fi
}
inline CALM() { probation = 0; passed = 0; pin = 0; before = 0; pin_state = 0; pin_upto = 0 }
inline PIN() { pin = newest + 1; pin_state = state[newest]; pin_upto = upto[newest] }
inline PRUNE() {               /* with the commit of an image what is too old goes, and what is then the first becomes an image */
  if
  :: newest - first >= VMAX ->
     low = newest - VMAX + 1; FOLD(low);
     if
     :: kind[n] == IMAGE && !torn[n] ->   /* else only what is older can mend it, and nothing goes */
#ifndef M_PRUNE_ANYWHERE
        kind[low] = IMAGE;
#endif
        do
        :: first < low -> kind[first] = ABSENT; torn[first] = 0; state[first] = 0; left[first] = 0; took[first] = 0; upto[first] = 0; first++
        :: else -> break
        od;
        SAW(W_PRUNED)
     :: else
     fi
  :: else
  fi
}

#define CHANGED(r) (read_newest[r] != newest || read_torn[r] != head_torn || read_aside[r] != moved_aside)

inline DO_ACCEPT(r) {
  if :: (newest + 1) % KEY == 0 -> APPEND(IMAGE, 0, 1) :: else -> APPEND(STEP, 0, 1) fi;
  if
  :: probation != 0 -> passed++; if :: passed >= PASS -> CALM(); SAW(W_PASSED) :: else fi
  :: else
  fi;
  SAW(W_ACCEPTED)
}
inline DO_RESET(r) {
#ifdef M_PIN_MOVES
  if
  :: true -> if :: probation == 0 -> before = newest + 1 :: else fi; PIN()
#else
  if
  :: probation == 0 -> PIN(); before = newest + 1; SAW(W_RESET)
  :: else -> SAW(W_RESET_AGAIN)
#endif
  fi;
  APPEND(IMAGE, 0, 0); probation = newest; passed = 0
}
inline DO_RECOVER(r) {         /* to the version that was found good when the damage was met */
  good = target[r];
  if
  :: good == newest ->         /* the log is whole: the head alone is written anew */
     torn_heads++; moved_aside++; head_torn = 0; CALM(); SAW(W_HEAD_MENDED)
  :: else ->
     i = first;                /* INV-08: what the state that is served again has not taken in is put aside again */
     do :: i <= newest -> if :: took[i] && i > upto[good] -> left[i] = 1 :: else fi; i++ :: else -> break od;
     was = state[good]; was_upto = upto[good];
     CALM(); APPEND(IMAGE, 1, 0); SAW(W_WALKED_BACK)
  fi
}
inline DO_RESTORE(r) {
  if
  :: pin > 1 -> was = pin_state; was_upto = pin_upto
  :: else -> was = state[target[r]]; was_upto = upto[target[r]]
  fi;
  if
#ifndef M_RESTORE_UNVALIDATED
  :: !PASSES(was) -> SAW(W_NOT_SOUND)
#endif
  :: else ->
     assert(PASSES(was));                /* INV-04 */
     CALM(); APPEND(IMAGE, 1, 0); SAW(W_RESTORED)
  fi
}

#define ROOM     (newest < NV)

proctype Process(byte r) {
end:
  do
  /* the measurement loop: an initial reset, a step, a reset, a revocation; a damaged head is recovered first */
#ifdef M_DAMAGE_IS_NOTHING
  :: d_step { plan[r] == NOTHING_ && (newest == 0 || head_torn) && ROOM -> PRE; PLAN(r, INITIAL, 0); POST("plan initial", ME) }
#else
  :: d_step { plan[r] == NOTHING_ && newest == 0 && ROOM -> PRE; PLAN(r, INITIAL, 0); POST("plan initial", ME) }
#endif
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM && SOUND(newest) -> PRE; PLAN(r, ACCEPT, 0); POST("plan accept", ME) }
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM -> PRE; PLAN(r, RESET, 0); POST("plan reset", ME) }
#ifndef EMIT                   /* it takes measurements that are held first, each a commit of its own that this model has not */
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM && pin > 1 -> PLAN(r, REVOKE, pin - 1); CHECK() }
#endif
#ifdef M_WALK_BACK_NONCONFORMING
  :: d_step { plan[r] == NOTHING_ && newest != 0 && (head_torn || !SOUND(newest)) && ROOM ->
#else
  :: d_step { plan[r] == NOTHING_ && newest != 0 && head_torn && ROOM ->
#endif
              PRE; NEWEST_GOOD(newest);
              if
              :: good == 0 -> SAW(W_NONE_GOOD)     /* an answer of its own: nothing is changed, and no reset may start */
              :: else ->
                 assert(SOUND(good));              /* INV-04: what is served again passes the rules in force */
                 PLAN(r, RECOVER, good)
              fi;
              POST("plan recover", ME) }
  /* the operator's hand: to the last known good */
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM && newest > first ->
              PRE; NEWEST_GOOD(newest - 1);
              if
              :: pin > 1 -> good = pin - 1           /* the pinned state is a record of its own */
              :: pin == 1 -> good = 0                /* nothing stood before the initial reset */
              :: else
              fi;
#ifdef M_LAST_GOOD_IS_HEAD
              good = newest;
#endif
              if
              :: good != 0 ->
                 /* INV-04: what is under probation is not known to be good */
                 assert(probation == 0 || good < probation);
                 PLAN(r, RESTORE, good); SAW(W_RESTORED_GOOD)
              :: else -> SAW(W_NONE_GOOD)
              fi;
              POST("plan restore", ME) }
  /* commits, each one transaction */
  :: d_step { plan[r] != NOTHING_ && CHANGED(r) -> PRE; DONE(r); SAW(W_CONFLICTED); POST("commit", ME) }
  :: d_step { plan[r] == INITIAL && !CHANGED(r) ->
              PRE; assert(newest == 0);  /* INV-04: only "nothing stored" may start an initial reset */
              pin = 1; before = 1; APPEND(IMAGE, 0, 1); probation = newest; DONE(r); SAW(W_INITIAL); POST("commit", ME) }
  :: d_step { plan[r] == ACCEPT && !CHANGED(r) -> PRE; DO_ACCEPT(r); DONE(r); POST("commit", ME) }
  :: d_step { plan[r] == RESET && !CHANGED(r) -> PRE; DO_RESET(r); DONE(r); POST("commit", ME) }
  :: d_step { plan[r] == REVOKE && !CHANGED(r) ->  /* a reset during probation: from the pinned state, which stays pinned */
              APPEND(IMAGE, 0, 1); probation = newest; passed = 0; SAW(W_REVOKED); DONE(r); CHECK() }
  :: d_step { plan[r] == RECOVER && !CHANGED(r) ->
              PRE; assert(head_torn);    /* INV-04: a readable state that breaks newer rules is not walked back by itself */
              DO_RECOVER(r); DONE(r); POST("commit", ME) }
  :: d_step { plan[r] == RESTORE && !CHANGED(r) -> PRE; DO_RESTORE(r); DONE(r); POST("commit", ME) }
  :: d_step { crashes < CRASHES && plan[r] != NOTHING_ -> PRE; crashes++; DONE(r); SAW(W_CRASHED); POST("crash", ME) }
  od
}

proctype World() {
  byte v;
end:
  do
  :: d_step { flips < FLIPS && newest != 0 && !head_torn -> PRE; flips++; head_torn = 1; SAW(W_FLIPPED_HEAD); POST("flip head", 0) }
  :: atomic { flips < FLIPS && newest != 0 && NOBODY_PLANS ->            /* a record of the log, and with the newest its head */
              v = first; do :: v < newest -> v++ :: break od;
              d_step { PRE; flips++; torn[v] = 1; if :: v == newest -> head_torn = 1 :: else fi;
                       which = v; v = 0; SAW(W_FLIPPED); POST("flip", which) } }
  :: atomic { rules < RULES && newest != 0 && NOBODY_PLANS ->    /* newer rules, which some state of the log breaks */
              v = first; do :: v < newest -> v++ :: break od;
              d_step { PRE; rules++; breaks = state[v]; which = v; v = 0; SAW(W_NONCONFORMING); POST("newer rules", which) } }
  od
}

init {
  byte k;
  atomic {
    c_code { atexit(tell_seen); };
    do :: k < NR -> run Process(k); k++ :: else -> break od;
    run World(); k = 0
  }
}
